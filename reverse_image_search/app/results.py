"""What can be said about a query's neighbors besides showing them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import PurePath

import numpy as np

from reverse_image_search.gallery import GalleryImage


def title_of(image: GalleryImage) -> str:
    """Its label, or the file name where it has none."""
    return image.label or name_of(image)


def name_of(image: GalleryImage) -> str:
    """Its file name, or what stands for it."""
    return PurePath(image.source).name


def narrow(
    images: Sequence[GalleryImage],
    scores: np.ndarray,
    count: int,
    lowest: float | None = None,
    left_out: Collection[bytes] = (),
) -> tuple[list[GalleryImage], np.ndarray]:
    """The first `count` of `images`, best first, and their scores.

    Without those that score less than `lowest`, or whose `sha256` is in `left_out`.
    """
    kept = [
        position
        for position, (image, score) in enumerate(zip(images, scores, strict=True))
        if (lowest is None or score >= lowest) and image.sha256 not in left_out
    ][:count]
    return [images[position] for position in kept], scores[kept]


def majority(images: Sequence[GalleryImage]) -> tuple[str, int, int] | None:
    """The most frequent label, how many images have it, and of how many; None without labels."""
    counts = Counter(image.label for image in images if image.label is not None)
    return (*counts.most_common(1)[0], len(images)) if counts else None


def results_csv(images: Sequence[GalleryImage], scores: np.ndarray) -> bytes:
    """Neighbors and their scores (K,), best first, as CSV with a header."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["rank", "gallery_id", "label", "score", "source"])
    for rank, (image, score) in enumerate(zip(images, scores.tolist(), strict=True), start=1):
        writer.writerow([rank, image.id, image.label, f"{score:.6f}", image.source])
    return file.getvalue().encode()
