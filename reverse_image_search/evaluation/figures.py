"""Figures of search quality, for ``doc/``."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")  # files only, no window

from matplotlib import pyplot as plt

from reverse_image_search.client import Neighbors
from reverse_image_search.evaluation.examples import Examples
from reverse_image_search.evaluation.metrics import Scores, bootstrap_interval, recall_at

COPY_EXAMPLES = 6
_NEIGHBORS = 12
_BLUE, _LIGHT_BLUE, _RED, _GREEN = "#1f5fa8", "#9cc3ea", "#d62728", "#2ca02c"


def draw_all(
    folder: Path,
    examples: Examples,
    served: Scores,
    neighbors: Neighbors | None,
    copies: list[np.ndarray] | np.ndarray,
    copy_neighbors: Neighbors,
) -> None:
    """Write ``recall_per_copy.png``, ``example_queries.png`` and, where there are labels,
    ``precision_per_class.png``.

    Parameters
    ----------
    neighbors : of the examples' queries; None where there are none
    copies, copy_neighbors : `COPY_EXAMPLES` copies of the first originals, and their neighbors
    """
    folder.mkdir(parents=True, exist_ok=True)
    _draw_recall_per_copy(folder, served)
    _draw_examples(folder, examples, neighbors, copies, copy_neighbors)
    if served.category_level:
        _draw_precision_per_class(folder, examples, served)


def _draw_precision_per_class(folder: Path, examples: Examples, served: Scores) -> None:
    classes = examples.queries_by_class()
    values = {
        name: [served.category_level[metric][of_class] for of_class in classes.values()]
        for name, metric in (("precision@1", "precision_at_1"), ("precision@20", "precision_at_20"))
    }
    title = "Category-level retrieval: neighbors of the query's class"
    _draw_bars(folder / "precision_per_class.png", list(classes), values, title)


def _draw_recall_per_copy(folder: Path, served: Scores) -> None:
    values = {
        f"recall@{k}": [recall_at(ranks, k) for ranks in served.instance_level.values()]
        for k in (1, 20)
    }
    title = "Instance-level retrieval: perturbed copies that find their original"
    _draw_bars(folder / "recall_per_copy.png", list(served.instance_level), values, title)


def _draw_bars(
    path: Path, names: list[str], values: dict[str, list[np.ndarray]], title: str
) -> None:
    """Two bars per name with their means and 95 % confidence intervals."""
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
    examples: Examples,
    neighbors: Neighbors | None,
    copies: list[np.ndarray] | np.ndarray,
    copy_neighbors: Neighbors,
) -> None:
    """One query of each class, then some copies; neighbors of another class are crossed out."""
    original_ids = examples.ids[examples.original_rows]
    rows = []  # image, name, label number, neighbor ids, id of the original
    if neighbors:
        for name, of_class in examples.queries_by_class().items():
            first = int(of_class.argmax())
            label = examples.query_labels[first]
            rows.append((examples.query_images[first], name, label, neighbors.ids[first], None))
    for copy, original, ids in zip(copies, original_ids, copy_neighbors.ids, strict=False):
        rows.append((copy, "copy", examples.labels_of(original), ids, original))
    columns = 1 + min(_NEIGHBORS, copy_neighbors.ids.shape[1])
    figure, grid = plt.subplots(
        len(rows), columns, figsize=(0.72 * columns, 0.8 * len(rows)), layout="constrained"
    )
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for cells, (image, name, label, ids, original) in zip(grid, rows, strict=True):
        _show(cells[0], image, frame="black")
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        known = ids[ids >= 0]  # the rest is padding
        for axes, neighbor in zip(cells[1:], examples.gallery.images(known), strict=False):
            _show(axes, neighbor.pixels, frame=_GREEN if neighbor.id == original else None)
            if examples.labels_of(np.int64(neighbor.id)) != label:
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
