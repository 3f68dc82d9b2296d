"""Random views of grey images, for training. A whole batch at once, on any device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mild_view(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Mirror half of the images and move each by up to 2 whole pixels.

    Parameters
    ----------
    images : (batch, 1, height, width) float32, 0 to 1, black background
    """
    batch, _, height, width = images.shape
    device = images.device
    padded = F.pad(images[:, 0], (2, 2, 2, 2))
    rows = torch.arange(height, device=device) + torch.randint(
        0, 5, (batch, 1), generator=generator, device=device
    )
    columns = torch.arange(width, device=device) + torch.randint(
        0, 5, (batch, 1), generator=generator, device=device
    )
    mirrored = torch.rand(batch, 1, generator=generator, device=device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(batch, device=device)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]][:, None]


def strong_view(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn, zoom, move, mirror, brighten and add noise, as a copy found elsewhere would be.

    Rotation up to 12 degrees, scale 0.88 to 1.12, shift up to 16 % of the side, mirror, contrast
    0.75 to 1.25, brightness up to 0.06, noise of standard deviation 0.03.

    Parameters
    ----------
    images : (batch, 1, height, width) float32, 0 to 1, black background
    """
    batch = len(images)
    device = images.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator, device=device)

    angle = uniform(-12, 12) * (math.pi / 180)
    scale = uniform(0.88, 1.12)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    # One coordinate step of the sampling grid spans the image, -1 to 1, so 0.32 is 16 %.
    row_x = torch.stack([cosine * mirror, -sine * mirror, uniform(-0.32, 0.32)], dim=1)
    row_y = torch.stack([sine, cosine, uniform(-0.32, 0.32)], dim=1)
    grid = F.affine_grid(torch.stack([row_x, row_y], dim=1), images.shape, align_corners=False)
    views = F.grid_sample(images, grid, align_corners=False)
    contrast = uniform(0.75, 1.25)[:, None, None, None]
    brightness = uniform(-0.06, 0.06)[:, None, None, None]
    noise = torch.randn(views.shape, generator=generator, device=device)
    return (views * contrast + brightness + 0.03 * noise).clamp(0.0, 1.0)
