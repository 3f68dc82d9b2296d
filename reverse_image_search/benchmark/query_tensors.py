"""The images that the benchmarks search with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import gallery_file


def query_tensors(output_dir: Path, count: int) -> np.ndarray:
    """A build's first example queries, or gallery images, in the size of the first one.

    Returns
    -------
    (n, 3, height, width) float32 RGB, 0 to 1, n at most `count`

    Raises
    ------
    GalleryError : the build has no gallery, or it is damaged
    """
    gallery = Gallery(gallery_file(output_dir))
    images = gallery.queries(gallery.query_ids()[:count])
    images = images or gallery.images(gallery.ids()[:count])
    size = Image.fromarray(images[0].pixels).size
    pixels = [Image.fromarray(image.pixels).convert("RGB").resize(size) for image in images]
    return np.stack([np.asarray(image).transpose(2, 0, 1) / np.float32(255) for image in pixels])
