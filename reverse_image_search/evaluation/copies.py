"""Disturbed copies of gallery images, to ask the search for their originals.

The ranges are fixed: they are part of what a recall here means.
"""

import io
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MAX_SHIFT = 0.14  # of the side, in both directions
MAX_ROTATION = 10.0  # degrees
MAX_SCALE = 0.1  # zoom from 0.9 to 1.1
MAX_CONTRAST = 0.2  # brightness is multiplied by 0.8 to 1.2 ...
MAX_BRIGHTNESS = 0.05  # ... and moved by up to this much of white
NOISE = 0.03  # standard deviation, of white
JPEG_QUALITY = 50
CROP = 0.8  # of the side; the copy is that much smaller
OCCLUSION = 8  # pixels, the side of a square of one random grey

# The kind that the goals speak of: shift, rotation, scale, mirror, brightness and noise together.
ALL = "all"


def make_copies(images: np.ndarray, kind: str, seed: int = 0) -> np.ndarray:
    """Draw one copy of each image.

    Parameters
    ----------
    images : (n, height, width) uint8, on a black background
    kind : one of `KINDS`

    Returns
    -------
    (n, height, width) uint8; smaller for ``crop``

    Raises
    ------
    ValueError : no such kind
    """
    if kind not in _MAKERS:
        raise ValueError(f"there is no copy called {kind!r}; there are {', '.join(_MAKERS)}")
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1) / 255  # (n, 1, h, w)
    copies = _MAKERS[kind](pixels, generator).clamp(0, 1)
    return (copies.squeeze(1) * 255).round().to(torch.uint8).numpy()


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    return _warp(images, generator, shift=MAX_SHIFT)


def _rotate(images: Tensor, generator: torch.Generator) -> Tensor:
    return _warp(images, generator, rotation=MAX_ROTATION)


def _scale(images: Tensor, generator: torch.Generator) -> Tensor:
    return _warp(images, generator, scale=MAX_SCALE)


def _mirror(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.flip(3)


def _brighten(images: Tensor, generator: torch.Generator) -> Tensor:
    contrast = 1 + MAX_CONTRAST * _draw(len(images), generator)
    offset = MAX_BRIGHTNESS * _draw(len(images), generator)
    return images * contrast.view(-1, 1, 1, 1) + offset.view(-1, 1, 1, 1)


def _add_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    return images + NOISE * torch.randn(images.shape, generator=generator)


def _compress(images: Tensor, generator: torch.Generator) -> Tensor:
    return torch.stack([_through_jpeg(image) for image in images])


def _crop(images: Tensor, generator: torch.Generator) -> Tensor:
    height, width = (round(CROP * side) for side in images.shape[2:])
    return _windows(images, height, width, generator)


def _occlude(images: Tensor, generator: torch.Generator) -> Tensor:
    occluded = images.clone()
    greys = torch.rand(len(images), 1, 1, 1, generator=generator)
    _windows(occluded, OCCLUSION, OCCLUSION, generator, fill=greys)
    return occluded


def _first_six(images: Tensor, generator: torch.Generator) -> Tensor:
    warped = _warp(images, generator, MAX_ROTATION, MAX_SCALE, MAX_SHIFT)
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    copies = torch.where(mirrored, warped.flip(3), warped)
    return _add_noise(_brighten(copies, generator).clamp(0, 1), generator)


_MAKERS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "shift": _shift,
    "rotation": _rotate,
    "scale": _scale,
    "mirror": _mirror,
    "brightness": _brighten,
    "noise": _add_noise,
    "jpeg": _compress,
    "crop": _crop,
    "occlusion": _occlude,
    ALL: _first_six,
}
KINDS = tuple(_MAKERS)


def _draw(count: int, generator: torch.Generator) -> Tensor:
    """(count,) evenly from -1 to 1."""
    return 2 * torch.rand(count, generator=generator) - 1


def _warp(
    images: Tensor,
    generator: torch.Generator,
    rotation: float = 0.0,
    scale: float = 0.0,
    shift: float = 0.0,
) -> Tensor:
    """Turn by up to `rotation` degrees, zoom by up to 1 ± `scale`, move by up to `shift` sides."""
    count = len(images)
    angle = rotation * math.pi / 180 * _draw(count, generator)
    zoom = 1 + scale * _draw(count, generator)
    cosine, sine = angle.cos() / zoom, angle.sin() / zoom
    # The sampling grid goes from -1 to 1, so a whole side is 2.
    move_x, move_y = (2 * shift * _draw(count, generator) for _ in range(2))
    transform = torch.stack([cosine, -sine, move_x, sine, cosine, move_y], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(transform, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _windows(
    images: Tensor,
    height: int,
    width: int,
    generator: torch.Generator,
    fill: Tensor | None = None,
) -> Tensor:
    """A window of each image (n, 1, height, width) at a random place, filled in place if asked."""
    tops, lefts = (
        torch.randint(side - size + 1, (len(images), 1), generator=generator)
        for side, size in zip(images.shape[2:], (height, width), strict=True)
    )
    rows = (tops + torch.arange(height))[:, :, None]
    columns = (lefts + torch.arange(width))[:, None, :]
    index = torch.arange(len(images))[:, None, None]
    if fill is not None:
        images[index, 0, rows, columns] = fill[:, 0].expand(-1, height, width)
    return images[index, 0, rows, columns].unsqueeze(1)


def _through_jpeg(image: Tensor) -> Tensor:
    file = io.BytesIO()
    pixels = (image[0] * 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(file, "jpeg", quality=JPEG_QUALITY)
    return torch.from_numpy(np.array(Image.open(file))).unsqueeze(0) / 255
