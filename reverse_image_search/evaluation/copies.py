"""Perturbed copies of gallery images, for instance-level retrieval.

The ranges are fixed: they are part of the definition of the recall.
"""

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from reverse_image_search.training.augmentation import affine_warp

MAX_SHIFT = 0.14  # of the side, in both directions
MAX_ROTATION = 10.0  # degrees
MAX_SCALE = 0.1  # zoom from 0.9 to 1.1
MAX_CONTRAST = 0.2  # pixels are multiplied by 0.8 to 1.2 ...
MAX_BRIGHTNESS = 0.05  # ... and shifted by up to this much of white
NOISE = 0.03  # standard deviation, of white
JPEG_QUALITY = 50
CROP = 0.8  # of the side; the copy is that much smaller
OCCLUSION = 8  # pixels, the side of a square of one random gray

# Shift, rotation, scale, flip, brightness and noise together: what the quality gate measures.
ALL = "all"


def make_copies(images: Sequence[np.ndarray] | np.ndarray, kind: str, seed: int = 0):
    """Draw one perturbed copy, of one of `KINDS`, of each (height, width[, 3]) uint8 image.

    Returns
    -------
    (n, height, width[, 3]) uint8, smaller for ``crop``; a list where images differ in shape
    """
    if kind not in _MAKERS:
        raise ValueError(f"unknown kind of copy {kind!r}; there are {', '.join(_MAKERS)}")
    if len({image.shape for image in images}) > 1:
        return [make_copies(image[None], kind, seed + i)[0] for i, image in enumerate(images)]
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(np.stack(list(images))) / 255
    is_grayscale = pixels.ndim == 3
    pixels = pixels.unsqueeze(1) if is_grayscale else pixels.permute(0, 3, 1, 2)  # (n, c, h, w)
    copies = (_MAKERS[kind](pixels, generator).clamp(0, 1) * 255).round().to(torch.uint8)
    return (copies.squeeze(1) if is_grayscale else copies.permute(0, 2, 3, 1)).numpy()


def _brighten(images: Tensor, generator: torch.Generator) -> Tensor:
    contrast = 1 + MAX_CONTRAST * _draw(len(images), generator)
    offset = MAX_BRIGHTNESS * _draw(len(images), generator)
    return images * contrast.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)


def _add_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + NOISE * torch.randn(images.shape, generator=generator)


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = (round(CROP * side) for side in images.shape[2:])
    return images[_windows(images, height, width, generator)].permute(0, 3, 1, 2)


def _occlude(images: Tensor, generator: torch.Generator) -> Tensor:
    occluded, grays = images.clone(), torch.rand(len(images), 1, 1, 1, generator=generator)
    occluded[_windows(images, OCCLUSION, OCCLUSION, generator)] = grays
    return occluded


def _all_at_once(images: Tensor, generator: torch.Generator) -> Tensor:
    warped = _warp(images, generator, MAX_ROTATION, MAX_SCALE, MAX_SHIFT)
    flipped = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    copies = torch.where(flipped, warped.flip(3), warped)
    return _add_noise(_brighten(copies, generator).clamp(0, 1), generator)


_MAKERS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "shift": lambda images, generator: _warp(images, generator, shift=MAX_SHIFT),
    "rotation": lambda images, generator: _warp(images, generator, rotation=MAX_ROTATION),
    "scale": lambda images, generator: _warp(images, generator, scale=MAX_SCALE),
    "mirror": lambda images, _: images.flip(3),
    "brightness": _brighten,
    "noise": _add_noise,
    "jpeg": lambda images, _: torch.stack([_through_jpeg(image) for image in images]),
    "crop": _crop,
    "occlusion": _occlude,
    ALL: _all_at_once,
}
KINDS = tuple(_MAKERS)


def _draw(count: int, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(count, generator=generator) - 1  # (count,) uniform from -1 to 1


def _warp(
    images: Tensor,
    generator: torch.Generator,
    rotation: float = 0,
    scale: float = 0,
    shift: float = 0,
) -> Tensor:
    """Rotate by up to `rotation` degrees, scale by 1 ± `scale`, shift by up to `shift` sides."""
    count = len(images)
    angle = rotation * math.pi / 180 * _draw(count, generator)
    zoom = 1 + scale * _draw(count, generator)
    # The sampling grid goes from -1 to 1, so a whole side is 2.
    shift_x, shift_y = (2 * shift * _draw(count, generator) for _ in range(2))
    return affine_warp(images, angle, zoom, shift_x, shift_y, torch.ones(count))


def _windows(images: Tensor, height: int, width: int, generator: torch.Generator) -> tuple:
    """Index of a window of each image (n, c, h, w) at a random place."""
    tops, lefts = (
        torch.randint(side - size + 1, (len(images), 1), generator=generator)
        for side, size in zip(images.shape[2:], (height, width), strict=True)
    )
    rows = (tops + torch.arange(height))[:, :, None]
    columns = (lefts + torch.arange(width))[:, None, :]
    return torch.arange(len(images))[:, None, None], slice(None), rows, columns


def _through_jpeg(image: Tensor) -> Tensor:  # (c, h, w)
    file = io.BytesIO()
    pixels = (image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels.squeeze()).save(file, "jpeg", quality=JPEG_QUALITY)
    decoded = torch.from_numpy(np.array(Image.open(file))).view(pixels.shape)
    return decoded.permute(2, 0, 1) / 255
