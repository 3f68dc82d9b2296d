"""What can be said about a query's neighbours besides showing them."""

from __future__ import annotations

import csv
import io

import numpy as np

from reverse_image_search.gallery import Gallery


def majority(gallery: Gallery, ids: np.ndarray) -> tuple[list[str], list[int]]:
    """Label names of gallery images and how many bear each, most frequent first."""
    labels, counts = np.unique(np.asarray(gallery.labels)[ids], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [gallery.class_names[label] for label in labels[order]], counts[order].tolist()


def same_picture(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two uint8 images, (height, width) grey or (height, width, 3) RGB, are equal."""
    if first.ndim < second.ndim:
        first = np.broadcast_to(first[..., None], (*first.shape, 3))
    elif second.ndim < first.ndim:
        second = np.broadcast_to(second[..., None], (*second.shape, 3))
    return np.array_equal(first, second)


def results_csv(gallery: Gallery, ids: np.ndarray, scores: np.ndarray) -> bytes:
    """Neighbours (K,) and their scores (K,), best first, as CSV with a header."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["rank", "gallery_id", "label", "score", "source"])
    for rank, (gallery_id, score) in enumerate(
        zip(ids.tolist(), scores.tolist(), strict=True), start=1
    ):
        label, source = gallery.label_name(gallery_id), gallery.source_name(gallery_id)
        writer.writerow([rank, gallery_id, label, f"{score:.6f}", source])
    return file.getvalue().encode()
