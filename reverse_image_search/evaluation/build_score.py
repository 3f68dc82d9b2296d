"""The score that a build gives itself, and the gate that it must pass to be published."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from reverse_image_search.datasets import Dataset, LabeledImage
from reverse_image_search.evaluation import metrics
from reverse_image_search.evaluation.copies import ALL
from reverse_image_search.evaluation.originals import Originals, draw_originals
from reverse_image_search.evaluation.photo_copies import kinds_of_copies
from reverse_image_search.evaluation.score_scale import ScoreScale, measure_score_scale
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import BUILD_COMMAND
from reverse_image_search.training.adaptation import FEWEST_IMAGES, is_held_out

# Enough to notice a failed training; evaluate.sh takes more.
_QUERIES, _COPIES, _COPIES_OF_PHOTOS = 2000, 1000, 300


class QualityError(Exception):
    """The search quality is below the gate; the message says what to do."""


def score_gallery(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray],
    gallery: Gallery,
    embeddings: np.ndarray,
    dataset: Dataset,
    gate: Mapping[str, float],
) -> tuple[dict[str, np.ndarray], ScoreScale]:
    """Score the encoder of a gallery, see `score_build`, and measure its scale of scores.

    Raises QualityError where the score does not pass the gate.
    """
    images, labels, is_photos = Originals(gallery), gallery.labels(), dataset.is_photos
    sources = gallery.sources()
    score = score_build(embed, images, embeddings, labels, dataset.queries, is_photos, sources)
    check_quality(score, gate)
    return score, measure_score_scale(embed, images, embeddings, labels, is_photos)


def score_build(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray],
    images: Sequence[np.ndarray],
    embeddings: np.ndarray,
    labels: Sequence[str | None],
    queries: Sequence[LabeledImage],
    is_photos: bool,
    sources: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Score an encoder on perturbed copies of gallery images, and on queries, drawn at random.

    Without queries, images of the gallery are (`draw_own_queries`), each left out of its results.

    Parameters
    ----------
    embed : n images, (height, width[, 3]) uint8 -> (n, D) float32 embeddings of unit length
    images, labels, sources : N, of the gallery; a few hundred images are read
    embeddings : (N, D) float32, what `embed` gives for `images`

    Returns
    -------
    One value for each copy in ``recall_at_1`` and ``recall_at_20`` (instance-level retrieval);
    where there are labels, one for each query in the metrics of `score_category_level`
    """
    _, make_copies = kinds_of_copies(is_photos)
    copied = draw_originals(len(images), _COPIES_OF_PHOTOS if is_photos else _COPIES)
    copies = make_copies([images[row] for row in copied], ALL, 0)
    scores = metrics.recalls(metrics.ranks_of_originals(embed(copies), copied, embeddings))
    numbers: dict[str | None, int] = {None: -1}
    gallery_labels = np.array([numbers.setdefault(label, len(numbers)) for label in labels])
    if len(queries):
        drawn = [queries[row] for row in draw_originals(len(queries), _QUERIES)]
        query_labels = np.array([numbers.get(query.label, -2) for query in drawn])
        query_embeddings, own_rows = embed([query.pixels for query in drawn]), None
    else:
        own_rows = draw_own_queries(gallery_labels, sources, _QUERIES)
        query_labels, query_embeddings = gallery_labels[own_rows], embeddings[own_rows]
    if len(query_labels) and (gallery_labels >= 0).any():
        scores |= metrics.score_category_level(
            query_embeddings, query_labels, embeddings, gallery_labels, own_rows
        )
    return scores


def print_score(score: Mapping[str, np.ndarray]) -> None:
    """Print the means of what `score_build` returns, with confidence intervals."""
    categories = {"P@1": "precision_at_1", "P@20": "precision_at_20", "mAP": "map"}
    copies = {"R@1": "recall_at_1", "R@20": "recall_at_20"}
    for title, names in (("same category", categories), ("perturbed copies", copies)):
        figures = [
            f"{name} {metrics.format_interval(score[key])}"
            for name, key in names.items()
            if key in score
        ]
        if figures:
            count = len(score[next(iter(names.values()))])
            print(f"  {title}: {', '.join(figures)} ({count:,} drawn at random)")
    if score:
        print("  (95 % confidence intervals in brackets; evaluate.sh measures more)")


def draw_own_queries(labels: np.ndarray, sources: Sequence[str], count: int) -> np.ndarray:
    """Rows, rising, of labeled images of the gallery (label at least 0) to search it with.

    Of a gallery that an encoder may have been adapted to, only images that had no part in that.
    """
    may_query = labels >= 0
    if len(sources) >= FEWEST_IMAGES:
        may_query &= [is_held_out(source) for source in sources]
    rows = np.flatnonzero(may_query)
    return rows[draw_originals(len(rows), count)]


def check_quality(scores: Mapping[str, np.ndarray], gate: Mapping[str, float]) -> None:
    """Raise a `QualityError` that names each metric below the gate of the encoder."""
    means = {name: float(np.mean(scores[name])) for name in gate}
    too_low = [
        f"{name} is {means[name]:.3f}, at least {minimum:.2f} is expected"
        for name, minimum in gate.items()
        if not means[name] >= minimum  # NaN is too low, too
    ]
    if too_low:
        raise QualityError(
            f"the search is not good enough to be served: {'; '.join(too_low)}. Try another "
            f"--seed, or publish it all the same with {BUILD_COMMAND} --no-floor"
        )
