"""Figures of search quality, for ``doc/``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reverse_image_search.client import Neighbors
from reverse_image_search.evaluation.examples import Examples
from reverse_image_search.evaluation.metrics import Scores, bootstrap_interval

COPY_EXAMPLES = 6
_NEIGHBORS = 12
_BLUE, _LIGHT_BLUE, _RED, _GREEN = "#1f5fa8", "#9cc3ea", "#d62728", "#2ca02c"


def draw_all(
    folder: Path,
    examples: Examples,
    served: Scores,
    neighbors: Neighbors | None,
    copies: Sequence[np.ndarray],
    copy_neighbors: Neighbors,
) -> None:
    """Write ``recall_per_copy.png``, ``example_queries.png`` (`neighbors` are those of the queries,
    `copies` are of the first originals) and, where there are labels, ``precision_per_class.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = "Instance-level retrieval: perturbed copies that find their original"
    _draw_bars(folder / "recall_per_copy.png", "recall", served.instance_level, title)
    if served.category_level:
        classes = examples.by_class(served.category_level)
        title = "Category-level retrieval: neighbors of the query's class"
        _draw_bars(folder / "precision_per_class.png", "precision", classes, title)
    _draw_examples(folder / "example_queries.png", examples, neighbors, copies, copy_neighbors)


def _draw_bars(path: Path, metric: str, rows: dict[str, dict[str, np.ndarray]], title: str) -> None:
    """Means at 1 and at 20 with 95 % confidence intervals, two bars for each row."""
    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    looks = ((1, -0.2, _BLUE, "white"), (20, 0.2, _LIGHT_BLUE, "black"))
    for k, offset, color, text_color in looks:
        samples = [metrics[f"{metric}_at_{k}"] for metrics in rows.values()]
        means = np.array([values.mean() for values in samples])
        intervals = np.array([bootstrap_interval(values) for values in samples]).T
        bars = axes.barh(
            places + offset, means, 0.38, xerr=np.abs(intervals - means), color=color,
            label=f"{metric}@{k}", error_kw={"lw": 1},
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.3f", label_type="center", fontsize=8, color=text_color)
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), title=title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def _draw_examples(
    path: Path,
    examples: Examples,
    neighbors: Neighbors | None,
    copies: Sequence[np.ndarray],
    copy_neighbors: Neighbors,
) -> None:
    """One query of each class, then some copies; neighbors of another class are crossed out."""
    original_ids = examples.ids[examples.original_rows]
    rows = []  # image, name, label number, neighbor ids, id of the original
    if neighbors:
        for label, first in zip(*np.unique(examples.query_labels, return_index=True), strict=True):
            name = examples.class_names[label] if label >= 0 else ""
            (image,) = examples.query_images([first])
            rows.append((image, name, label, neighbors.ids[first], None))
    for copy, original, ids in zip(copies, original_ids, copy_neighbors.ids, strict=False):
        rows.append((copy, "copy", examples.labels_of(original), ids, original))
    columns = 1 + min(_NEIGHBORS, copy_neighbors.ids.shape[1])
    figure = Figure(figsize=(0.72 * columns, 0.8 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for cells, (image, name, label, ids, original) in zip(grid, rows, strict=True):
        _show(cells[0], image, frame="black")
        cells[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        known = ids[ids >= 0][: columns - 1]  # the rest is padding
        is_crossed_out = examples.labels_of(known) != label
        for axes, neighbor, crossed in zip(
            cells[1:], examples.gallery.images(known), is_crossed_out, strict=False
        ):
            _show(axes, neighbor.pixels, frame=_GREEN if neighbor.id == original else None)
            for ends in ([0, 1], [1, 0]) if crossed else ():
                axes.plot([0, 1], ends, transform=axes.transAxes, color=_RED, lw=1.5)
    figure.suptitle(
        "Queries (framed) and their nearest gallery images, best first.\n"
        "Crossed out: another class. Green: the original of the copy.",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)


def _show(axes: Axes, image: np.ndarray, frame: str | None) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    if frame:
        axes.spines[:].set(visible=True, color=frame, linewidth=2.5)
