"""Convert images to tensors that hold pixels as the contract wants them."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reverse_image_search import contract
from reverse_image_search.image_file import read_image, to_rgb

# Resampling in float32 can leave 0 to 1 by this much.
_ROUNDING = 1e-5


def to_tensors(images: Any) -> list[np.ndarray]:
    """Convert one image or several, in any form that `Client.embed` takes.

    Raises
    ------
    ValueError, TypeError : no images, another shape or type, or one that can be taken in two ways
    """
    if isinstance(images, bytes):
        raise TypeError("an image must be a path, a Pillow image or an array, got bytes")
    is_one = isinstance(images, (Image.Image, str, PathLike))
    if hasattr(images, "__array__") and not is_one:
        images = np.asarray(images)
        is_one = images.ndim < 4
        if images.dtype == np.uint8 and images.ndim == 3:
            is_one = images.shape[2] == 3
            if images.shape[0] == 3 and not is_one:
                raise ValueError(
                    f"a uint8 array of shape {images.shape} is one channels-first image or three "
                    "grayscale ones: pass (height, width, 3), or a list of (height, width) arrays"
                )
    tensors = [to_tensor(image) for image in ([images] if is_one else images)]
    if not tensors:
        raise ValueError("there are no images to embed")
    return tensors


def to_tensor(image: Image.Image | np.ndarray | str | PathLike) -> np.ndarray:
    """Convert one image to (3, height, width) float32, RGB from 0 to 1.

    Parameters
    ----------
    image : a Pillow image or the path of an image file, shrunk to `MAX_SIDE`; a (height,
        width[, 3]) uint8 array; or a (3, height, width) float32 array, RGB from 0 to 1

    Raises
    ------
    ValueError, TypeError : another shape or type
    OSError, ImageFileError : the file cannot be read
    """
    if isinstance(image, Image.Image):
        image = to_rgb(image)
    elif isinstance(image, (str, PathLike)):
        image = read_image(Path(image).read_bytes()).pixels
    image = np.asarray(image)
    if image.size == 0:
        raise ValueError(f"an image must have pixels, got shape {image.shape}")
    if image.dtype == np.float32:
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"a float32 image must have shape (3, height, width), got {image.shape}"
            )
        low, high = image.min(), image.max()
        if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # false for NaN as well
            raise ValueError(
                "a float32 image of shape (3, height, width) must have values from 0 to 1, got "
                f"{low:g} to {high:g}. Divide 0 to 255 by 255; do not normalize: the encoder does"
            )
        return image
    if image.dtype != np.uint8:
        raise TypeError(
            "an image must be a Pillow image, uint8 from 0 to 255 or float32 from 0 to 1, got "
            f"{image.dtype}"
        )
    if image.ndim == 2:
        image = np.broadcast_to(image[..., None], (*image.shape, 3))
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a uint8 image must have shape (height, width[, 3]), got {image.shape}")
    return (image.transpose(2, 0, 1) / np.float32(255)).astype(np.float32, copy=False)


def batches_of_one_shape(tensors: list[np.ndarray]) -> list[list[int]]:
    """Indices of `tensors`, grouped by shape and split into batches that the models accept."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_shape.setdefault(tensor.shape, []).append(i)
    size = contract.MAX_BATCH_SIZE
    return [
        indices[start : start + size]
        for indices in by_shape.values()
        for start in range(0, len(indices), size)
    ]
