"""Random augmentation: of batches of grayscale images on any device, and of photos."""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor


def random_horizontal_flip(images: Tensor) -> Tensor:
    """Flip about half of the `images` (batch, 1, height, width), left to right."""
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flipped, images.flip(3), images)


def affine_warp(
    images: Tensor, angle: Tensor, scale: Tensor, shift_x: Tensor, shift_y: Tensor, side: Tensor
) -> Tensor:
    """Rotate, scale, shift, and flip each image about its center; what was outside is black.

    `images` are (batch, channels, height, width), all others (batch,): the angle in radians, a
    scale that enlarges above 1, shifts in sampling coordinates, where a side has length 2, and 1,
    or -1 to flip left to right.
    """
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    to_x = torch.stack([side * cosine, -side * sine, shift_x], dim=1)
    to_y = torch.stack([sine, cosine, shift_y], dim=1)
    transform = torch.stack([to_x, to_y], dim=1)  # (batch, 2, 3)
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def strong_view(images: Tensor) -> Tensor:
    """Strongly augmented views of images (batch, 1, height, width), 0 to 1, on black.

    Rotation up to 12 degrees, scale 0.88 to 1.12, shift up to 16 % of the side, flip, contrast
    0.75 to 1.25, brightness up to 0.06, noise of standard deviation 0.03.
    """
    batch, device = len(images), images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, device=device)

    angle = uniform(-12, 12) * (math.pi / 180)
    scale = uniform(0.88, 1.12)
    side = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    # The sampling grid goes from -1 to 1, so 0.32 is 16 % of the side.
    views = affine_warp(images, angle, scale, uniform(-0.32, 0.32), uniform(-0.32, 0.32), side)
    contrast = uniform(0.75, 1.25).view(-1, 1, 1, 1)
    brightness = uniform(-0.06, 0.06).view(-1, 1, 1, 1)
    noise = 0.03 * torch.randn_like(views)
    return (views * contrast + brightness + noise).clamp(0.0, 1.0)


def photo_view(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A perturbed copy of a photo (height, width[, 3]) uint8, as people make them, in RGB.

    Cropped to 56 % of the area, turned by up to 10 degrees on black, brightness, contrast, and
    saturation times 0.7 to 1.3, saved as JPEG of quality 50.
    """
    image = Image.fromarray(pixels).convert("RGB")
    width, height = (max(1, round(0.75 * side)) for side in image.size)
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    image = image.crop((left, top, left + width, top + height))
    image = image.rotate(generator.uniform(-10, 10), Image.Resampling.BICUBIC)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(generator.uniform(0.7, 1.3))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file).convert("RGB"))
