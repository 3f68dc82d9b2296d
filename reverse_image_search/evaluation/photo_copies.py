"""Perturbed copies of photos, as people make them: cropped, turned, with other colors, compressed.

The ranges are fixed: they are part of the definition of the recall.
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance

from reverse_image_search.evaluation.copies import ALL, KINDS, make_copies

CROP_AREA = 0.56  # of the photo, at a random place
MAX_TURN = 10.0  # degrees; what turns in at the corners is black
MAX_COLOR = 0.3  # brightness, contrast, and saturation are multiplied by 0.7 to 1.3
JPEG_QUALITY = 50


def make_photo_copies(images: Sequence[np.ndarray], kind: str, seed: int = 0) -> list[np.ndarray]:
    """Draw one copy, of one of `PHOTO_KINDS`, of each (height, width[, 3]) uint8 image.

    Returns
    -------
    n images (height, width, 3) uint8
    """
    if kind not in PHOTO_KINDS:
        raise ValueError(f"unknown kind of copy {kind!r}; there are {', '.join(PHOTO_KINDS)}")
    copies = []
    for position, pixels in enumerate(images):
        generator = np.random.default_rng([seed, position])
        image = Image.fromarray(pixels).convert("RGB")
        for perturb in _PERTURBATIONS.values() if kind == ALL else [_PERTURBATIONS[kind]]:
            image = perturb(image, generator)
        copies.append(np.asarray(image))
    return copies


def _crop(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * CROP_AREA**0.5)) for side in image.size)
    left = int(generator.integers(image.width - width + 1))
    top = int(generator.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _turn(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    return image.rotate(generator.uniform(-MAX_TURN, MAX_TURN), Image.Resampling.BICUBIC)


def _recolor(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(1 + MAX_COLOR * generator.uniform(-1, 1))
    return image


def _compress(image: Image.Image, _generator: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=JPEG_QUALITY)
    return Image.open(file).convert("RGB")


_PERTURBATIONS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop": _crop,
    "turn": _turn,
    "color": _recolor,
    "jpeg": _compress,
}
PHOTO_KINDS = (*_PERTURBATIONS, ALL)  # `ALL`: in this order


def kinds_of_copies(
    is_photos: bool,
) -> tuple[tuple[str, ...], Callable[[Sequence[np.ndarray], str, int], Sequence[np.ndarray]]]:
    """Kinds of perturbed copies that suit a gallery, and the function that makes them."""
    return (PHOTO_KINDS, make_photo_copies) if is_photos else (KINDS, make_copies)
