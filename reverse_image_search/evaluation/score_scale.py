"""What the scores of a gallery mean: cosine similarities of pairs whose relation is known."""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from reverse_image_search.evaluation.originals import draw_originals
from reverse_image_search.evaluation.photo_copies import kinds_of_copies
from reverse_image_search.gallery import SCORE_QUANTILES

_PAIRS = 10_000
_COPIES = 300  # of all kinds together
_SEARCHED = 2000  # images whose nearest neighbor is looked at
_ROWS_AT_ONCE = 100
# Share of images that may have a neighbor above the threshold although they have no near-duplicate.
# Where one image in ten has one, 99 % of what is found is right then.
_WRONG_SHARE = 0.001
_ALIKE = 1 - 1e-6  # scores above this are those of equal images


class ScoreScale(NamedTuple):
    """The scores of a gallery's pairs, as `GalleryMetadata` has them."""

    # `SCORE_QUANTILES` of the scores of "random_pairs", of "perturbed_copies" with their originals,
    # and, where there are labels, of pairs of the "same_label".
    score_scale: dict[str, list[float]]
    duplicate_threshold: float  # the least score of near-duplicates


def measure_score_scale(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray],
    images: Sequence[np.ndarray],
    embeddings: np.ndarray,
    labels: Sequence[str | None],
    is_photos: bool,
    seed: int = 0,
) -> ScoreScale:
    """Measure the scores of random pairs, of perturbed copies, and of images of the same label.

    Parameters
    ----------
    embed : n images, (height, width[, 3]) uint8 -> (n, D) float32 embeddings of unit length
    images : N, of which a few hundred are read
    embeddings : (N, D) float32, what `embed` gives for `images`
    labels : N
    """
    generator = np.random.default_rng(seed)
    rows, others = generator.integers(len(embeddings), size=(2, _PAIRS))
    copies = _score_copies(embed, images, embeddings, is_photos, seed)
    scores = {
        "random_pairs": _scores(embeddings, rows[rows != others], others[rows != others]),
        "perturbed_copies": copies,
        "same_label": _scores(embeddings, *_pairs_of_one_label(labels, generator)),
    }
    return ScoreScale(
        {
            name: np.percentile(values, SCORE_QUANTILES).round(4).tolist()
            for name, values in scores.items()
            if len(values)
        },
        _duplicate_threshold(embeddings, copies, seed),
    )


def _score_copies(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray],
    images: Sequence[np.ndarray],
    embeddings: np.ndarray,
    is_photos: bool,
    seed: int,
) -> np.ndarray:
    """Scores of perturbed copies, as many of each kind, with their originals: (n,)."""
    kinds, make_copies = kinds_of_copies(is_photos)
    rows = draw_originals(len(images), _COPIES, seed)
    scores = []
    for number, kind in enumerate(kinds):
        originals = rows[number :: len(kinds)]
        if len(originals):
            copies = make_copies([images[row] for row in originals], kind, seed)
            scores.append((embed(copies) * embeddings[originals]).sum(axis=1))
    return np.concatenate(scores)


def _pairs_of_one_label(
    labels: Sequence[str | None], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of pairs: a random image that has a label, and another of that label."""
    names = np.array([label or "" for label in labels])
    order = np.argsort(names, kind="stable")
    order = order[names[order] != ""]
    _, starts, counts = np.unique(names[order], return_index=True, return_counts=True)
    if not len(order):
        return order, order
    positions = generator.integers(len(order), size=_PAIRS)
    groups = np.searchsorted(starts, positions, side="right") - 1
    # Some steps further round the images of its label, never back to itself.
    steps = 1 + (generator.random(_PAIRS) * (counts[groups] - 1)).astype(int)
    others = starts[groups] + (positions - starts[groups] + steps) % counts[groups]
    is_pair = counts[groups] > 1
    return order[positions[is_pair]], order[others[is_pair]]


def _scores(embeddings: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", embeddings[rows], embeddings[others])


def _duplicate_threshold(embeddings: np.ndarray, copies: np.ndarray, seed: int) -> float:
    """The score that separates images without a near-duplicate from perturbed copies.

    Hardly any nearest neighbor that is no duplicate must be above it; it is in the middle between
    these and most copies, where the two do not overlap. Since a folder may have many duplicates,
    the highest scores of neighbors are not looked at: their arctanh (Fisher 1915) is taken for
    normally distributed, with the lower quartile and the median that are seen.
    """
    nearest = []
    rows = draw_originals(len(embeddings), _SEARCHED, seed)
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        similarity = embeddings[part] @ embeddings.T
        np.put_along_axis(similarity, part[:, None], -1, axis=1)
        nearest.append(similarity.max(axis=1))
    lower, middle = np.arctanh(np.quantile(np.concatenate(nearest), [0.25, 0.5]).clip(-1, _ALIKE))
    normal = NormalDist()
    deviation = (middle - lower) / normal.inv_cdf(0.75)
    no_duplicates = np.tanh(middle + deviation * normal.inv_cdf(1 - _WRONG_SHARE))
    most_copies = np.quantile(copies, 0.05)
    return round(float(max(no_duplicates, (no_duplicates + most_copies) / 2)), 4)
