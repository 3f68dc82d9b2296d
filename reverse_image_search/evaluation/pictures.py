"""Pictures of a search's quality, for ``doc/``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only, no window

from matplotlib import pyplot as plt

from reverse_image_search.evaluation.metrics import bootstrap_interval, recall_at
from reverse_image_search.gallery import Gallery

if TYPE_CHECKING:
    from reverse_image_search.evaluation.evaluate import Scores

COPY_EXAMPLES = 6
_NEIGHBORS = 12
_BLUE, _LIGHT_BLUE, _RED, _GREEN = "#1f5fa8", "#9cc3ea", "#d62728", "#2ca02c"


def draw_all(
    folder: Path,
    gallery: Gallery,
    query_labels: np.ndarray,
    served: Scores,
    neighbor_ids: np.ndarray,
    copies: np.ndarray,
    original_ids: np.ndarray,
    copy_neighbor_ids: np.ndarray,
) -> None:
    """Write ``precision_per_class.png``, ``recall_per_copy.png`` and ``example_queries.png``.

    Parameters
    ----------
    query_labels, neighbor_ids : (n,) and (n, K) of the first n query images of `gallery`
    copies, original_ids : (m, height, width) uint8 and (m,) ids of their originals
    copy_neighbor_ids : (COPY_EXAMPLES, K) of the first copies
    """
    folder.mkdir(parents=True, exist_ok=True)
    _draw_precision_per_class(folder, gallery, query_labels, served)
    _draw_recall_per_copy(folder, served)
    _draw_examples(
        folder, gallery, query_labels, neighbor_ids, copies, original_ids, copy_neighbor_ids
    )


def _draw_precision_per_class(
    folder: Path, gallery: Gallery, query_labels: np.ndarray, served: Scores
) -> None:
    classes = [i for i in range(len(gallery.class_names)) if (query_labels == i).any()]
    values = {
        name: [served.same_kind[metric][query_labels == label] for label in classes]
        for name, metric in (("precision@1", "precision_at_1"), ("precision@20", "precision_at_20"))
    }
    names = [gallery.class_names[label] for label in classes]
    _draw_bars(folder / "precision_per_class.png", names, values, "Images of the same kind")


def _draw_recall_per_copy(folder: Path, served: Scores) -> None:
    values = {
        f"recall@{k}": [recall_at(ranks, k) for ranks in served.same_item.values()] for k in (1, 20)
    }
    _draw_bars(
        folder / "recall_per_copy.png", list(served.same_item), values, "Copies of gallery images"
    )


def _draw_bars(
    path: Path, names: list[str], values: dict[str, list[np.ndarray]], title: str
) -> None:
    """Two bars a name with their means and 95 % confidence intervals."""
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
    places = np.arange(len(names))
    for offset, color, (metric, samples) in zip(
        (-0.2, 0.2), (_BLUE, _LIGHT_BLUE), values.items(), strict=True
    ):
        means = np.array([sample.mean() for sample in samples])
        intervals = np.array([bootstrap_interval(sample) for sample in samples]).T
        spread = np.maximum(np.abs(intervals - means), 0)
        axes.barh(
            places + offset, means, 0.38, xerr=spread, color=color, label=metric, error_kw={"lw": 1}
        )
        for place, mean in zip(places + offset, means, strict=True):
            axes.text(
                0.005,
                place,
                f"{mean:.3f}",
                va="center",
                fontsize=8,
                color="white" if color == _BLUE else "black",
            )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.02)
    axes.set_title(title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_examples(
    folder: Path,
    gallery: Gallery,
    query_labels: np.ndarray,
    neighbor_ids: np.ndarray,
    copies: np.ndarray,
    original_ids: np.ndarray,
    copy_neighbor_ids: np.ndarray,
) -> None:
    """One query of each class, then some copies; neighbours of another class are crossed out."""
    labels, first_queries = np.unique(query_labels, return_index=True)
    rows = [
        (gallery.query_images[query], gallery.class_names[label], label, neighbor_ids[query], None)
        for label, query in zip(labels, first_queries, strict=True)
    ] + [
        (copy, "copy", gallery.labels[original], ids, original)
        for copy, original, ids in zip(copies, original_ids, copy_neighbor_ids, strict=False)
    ]
    columns = 1 + min(_NEIGHBORS, neighbor_ids.shape[1])
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(0.72 * columns, 0.8 * len(rows)), layout="constrained"
    )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for cells, (image, name, label, ids, original) in zip(grid, rows, strict=True):
        _show(cells[0], image, frame="black")
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        for axes, neighbor in zip(cells[1:], ids, strict=False):
            is_original = neighbor == original
            _show(axes, gallery.images[neighbor], frame=_GREEN if is_original else None)
            if gallery.labels[neighbor] != label:
                axes.plot([0, 1], [0, 1], transform=axes.transAxes, color=_RED, lw=1.5)
                axes.plot([0, 1], [1, 0], transform=axes.transAxes, color=_RED, lw=1.5)
    figure.suptitle(
        "Queries (framed) and their nearest gallery images, best first.\n"
        "Crossed out: another class. Green: the original of the copy.",
        fontsize=9,
    )
    figure.savefig(folder / "example_queries.png", dpi=110)
    plt.close(figure)


def _show(axes: plt.Axes, image: np.ndarray, frame: str | None) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    if frame:
        axes.spines[:].set(visible=True, color=frame, linewidth=2.5)
