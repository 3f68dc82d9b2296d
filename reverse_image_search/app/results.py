"""What can be said about a query's neighbors besides showing them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np

from reverse_image_search.gallery import GalleryImage


def title_of(image: GalleryImage) -> str:
    """Its label, or the file name where it has none."""
    return image.label or PurePath(image.source).name


def majority(images: Sequence[GalleryImage]) -> tuple[str, int] | None:
    """The most frequent label and how many images have it; None where none has a label."""
    counts = Counter(image.label for image in images if image.label is not None)
    return counts.most_common(1)[0] if counts else None


def results_csv(images: Sequence[GalleryImage], scores: np.ndarray) -> bytes:
    """Neighbors and their scores (K,), best first, as CSV with a header."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["rank", "gallery_id", "label", "score", "source"])
    for rank, (image, score) in enumerate(zip(images, scores.tolist(), strict=True), start=1):
        writer.writerow([rank, image.id, image.label, f"{score:.6f}", image.source])
    return file.getvalue().encode()
