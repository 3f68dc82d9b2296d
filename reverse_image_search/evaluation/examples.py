"""What an evaluation searches with."""

from collections.abc import Sequence

import numpy as np

from reverse_image_search.evaluation.build_score import draw_own_queries
from reverse_image_search.evaluation.originals import Originals, draw_originals
from reverse_image_search.gallery import Gallery, rows_of

_COPIES, _COPIES_OF_PHOTOS = 2000, 500  # photos take a hundred times as long
_QUERIES_OF_GALLERY = 2000


class Examples:
    """The images to search with, and the gallery to find them in.

    `ids`, `embeddings` and `labels` are those of the gallery, N each; queries have `query_labels`;
    `originals` are the images to copy, at `original_rows` of `ids`. Labels are indices of
    `class_names`; -1 is no label.

    A gallery with labels but without example queries is searched for images of its own, at
    `own_rows` of `ids`; each is left out of its own results.
    """

    def __init__(self, gallery: Gallery, query_count: int | None, copy_count: int | None) -> None:
        self.gallery = gallery
        self.class_names = gallery.metadata.class_names
        self.ids, self.embeddings = gallery.embeddings()
        self.labels = self._label_numbers(gallery.labels())
        self.own_rows: np.ndarray | None = None
        self.query_ids = gallery.query_ids()[:query_count] if self.class_names else self.ids[:0]
        if self.class_names and not gallery.query_count:
            count = query_count or _QUERIES_OF_GALLERY
            self.own_rows = draw_own_queries(self.labels, gallery.sources(), count)
            self.query_ids = self.ids[self.own_rows]
        queries = gallery.queries if self.own_rows is None else gallery.images
        self.query_labels = self._label_numbers([query.label for query in queries(self.query_ids)])
        self._read_queries = queries
        default = _COPIES_OF_PHOTOS if gallery.metadata.is_photos else _COPIES
        self.original_rows = draw_originals(len(gallery), copy_count or default)
        originals = Originals(gallery)
        self.originals = [originals[row] for row in self.original_rows]

    def query_images(self, positions: slice | Sequence[int] = slice(None)) -> list[np.ndarray]:
        """Pixels of the queries at `positions`, as thumbnails."""
        return [query.pixels for query in self._read_queries(self.query_ids[positions])]

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """Rows of gallery ids, of any shape; -1 for those that the gallery does not have."""
        return rows_of(ids, self.ids)

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
