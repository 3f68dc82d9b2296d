"""Make an uploaded photo look like the images of the gallery, and preview it.

Fashion-MNIST's images were photos on white: trimmed to the object, padded to a square and
inverted (Xiao et al. 2017, "Fashion-MNIST", section 2).
"""

from __future__ import annotations

import numpy as np
from PIL import Image

_PLAIN = 32  # of 255: how far a background may deviate from the color of the border
_SPECKS = 0.01  # share of a row or column that may stand out without being part of the object


def to_query(pixels: np.ndarray, crop: bool, invert: bool) -> np.ndarray:
    """Crop a photo to its object, pad it to a square and invert it: (side, side, 3) uint8 RGB.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 RGB
    crop : cut off what is as plain as the border
    invert : show a dark object on a light background as a light one on black
    """
    background = np.median(_border(pixels), axis=0)  # (3,)
    if crop:
        pixels = _object_in(pixels, background)
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), background, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    if not invert:
        return square
    # The background becomes black, the darkest pixels white.
    return (255 * np.clip(1 - square / np.maximum(background, 1), 0, 1)).astype(np.uint8)


def has_light_background(pixels: np.ndarray) -> bool:
    """Whether the outermost pixels of (height, width, 3) uint8 RGB are light."""
    return bool(_border(pixels).mean() > 127)


def as_encoder_sees(
    pixels: np.ndarray, size: tuple[int, int], grayscale: bool = True
) -> np.ndarray:
    """Preview of an image after the resizing and color conversion inside the encoder.

    From (height, width, 3) uint8 RGB to (*size[, 3]) uint8, gray or RGB.
    """
    image = Image.fromarray(pixels).convert("L" if grayscale else "RGB")
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _object_in(pixels: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Smallest rectangle of (height, width, 3) that holds all that differs from `background`."""
    stands_out = np.abs(pixels - background).max(axis=2) > _PLAIN
    # A few specks of dust are not an object.
    rows = np.flatnonzero(stands_out.mean(axis=1) > _SPECKS)
    columns = np.flatnonzero(stands_out.mean(axis=0) > _SPECKS)
    if not (len(rows) and len(columns)):
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of (height, width, 3), as (n, 3)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
