"""The gallery's images as they were embedded: from their files, where there are any."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from reverse_image_search.gallery import Gallery
from reverse_image_search.image_reader import ImageReader


class Originals(Sequence[np.ndarray]):
    """Pixels (height, width[, 3]) uint8 of a gallery's images, by ascending id; read on access.

    Of an image without a file that can be read, they are those of its thumbnail.
    """

    def __init__(self, gallery: Gallery) -> None:
        self._gallery, self._ids = gallery, gallery.ids()
        self._reader = ImageReader(1)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, row):
        (image,) = self._gallery.images([self._ids[row]])
        files = (self._reader.read(os.fsencode(path)) for path in self._gallery.paths(image.id))
        read = (file.photo.pixels for file in files if file.photo)  # others moved or changed
        return next(read, image.pixels)


def draw_originals(gallery_size: int, count: int, seed: int = 0) -> np.ndarray:
    """Positions (count,) int64, rising, of gallery images to copy; all of a smaller gallery."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.permutation(gallery_size)[:count])
