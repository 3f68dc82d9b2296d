"""What an evaluation searches with."""

from collections.abc import Sequence

import numpy as np

from reverse_image_search.evaluation.build_score import draw_originals
from reverse_image_search.gallery import Gallery


class Examples:
    """The images to search with, and the gallery to find them in.

    `ids`, `embeddings` and `labels` are those of the gallery, N each; `query_images` have a label
    and are not in the gallery; `originals` are the images to copy, at `original_rows` of `ids`.
    Labels are indices of `class_names`; -1 is no label.
    """

    def __init__(self, gallery: Gallery, query_count: int | None, copy_count: int) -> None:
        self.gallery = gallery
        self.class_names = gallery.metadata.class_names
        self.ids, self.embeddings = gallery.embeddings()
        self.labels = self._label_numbers(gallery.labels())
        queries = gallery.queries(gallery.query_ids()[:query_count]) if self.class_names else []
        self.query_images = [query.pixels for query in queries]
        self.query_labels = self._label_numbers([query.label for query in queries])
        self.original_rows = draw_originals(len(gallery), copy_count)
        self.originals = [image.pixels for image in gallery.images(self.ids[self.original_rows])]

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Rows of gallery ids, of any shape; -1 for those that the gallery does not have."""
        rows = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[rows] == ids, rows, -1)

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        """Label numbers of gallery ids, of any shape; -2, no query's label, for padding."""
        rows = self.rows_of(ids)
        return np.where(rows < 0, -2, self.labels[rows])

    def by_class(self, metrics: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
        """Metrics with one value per query, for each class that has queries."""
        masks = {name: self.query_labels == i for i, name in enumerate(self.class_names)}
        return {
            name: {metric: values[mask] for metric, values in metrics.items()}
            for name, mask in masks.items()
            if mask.any()
        }

    def _label_numbers(self, labels: Sequence[str | None]) -> np.ndarray:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        return np.array([numbers.get(label or "", -1) for label in labels], int)
