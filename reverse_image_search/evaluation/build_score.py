"""The score that a build gives itself, and the gate that it must pass to be published."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from reverse_image_search.datasets import Dataset
from reverse_image_search.evaluation import metrics
from reverse_image_search.evaluation.copies import ALL, make_copies
from reverse_image_search.layout import BUILD_COMMAND

_QUERIES = 2000  # enough to notice a failed training; evaluate.sh takes all
_COPIES = 1000


class QualityError(Exception):
    """The search quality is below the gate; the message says what to do."""


def score_build(
    embed: Callable[[Sequence[np.ndarray]], np.ndarray],
    gallery_embeddings: np.ndarray,
    dataset: Dataset,
) -> dict[str, float]:
    """Score an encoder on the dataset's first queries and on perturbed copies of its gallery.

    Parameters
    ----------
    embed : n images, (height, width[, 3]) uint8 -> (n, D) float32 embeddings of unit length
    gallery_embeddings : (N, D) float32, what `embed` gives for the gallery

    Returns
    -------
    ``recall_at_1`` and ``recall_at_20`` of perturbed copies (instance-level retrieval); where the
    dataset has labels and queries, those of `score_category_level` as well
    """
    original_ids = draw_originals(len(dataset.gallery), _COPIES)
    copies = make_copies([dataset.gallery[i].pixels for i in original_ids], ALL)
    ranks = metrics.ranks_of_originals(embed(copies), original_ids, gallery_embeddings)
    scores = metrics.recalls(ranks)
    if dataset.class_names and len(dataset.queries):
        queries = [dataset.queries[i] for i in range(min(_QUERIES, len(dataset.queries)))]
        _, labels = np.unique(
            [str(image.label) for image in (*queries, *dataset.gallery)], return_inverse=True
        )
        query_labels, gallery_labels = np.split(labels, [len(queries)])
        query_embeddings = embed([query.pixels for query in queries])
        scores |= metrics.score_category_level(
            query_embeddings, query_labels, gallery_embeddings, gallery_labels
        )
    return {name: float(values.mean()) for name, values in scores.items()}


def draw_originals(gallery_size: int, count: int, seed: int = 0) -> np.ndarray:
    """Positions (count,) int64, rising, of gallery images to copy; all of a smaller gallery."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.permutation(gallery_size)[:count])


def check_quality(score: Mapping[str, float], gate: Mapping[str, float]) -> None:
    """Raise a `QualityError` that names each metric below the gate of the encoder."""
    too_low = [
        f"{name} is {score[name]:.3f}, at least {minimum:.2f} is expected"
        for name, minimum in gate.items()
        if not score[name] >= minimum  # NaN is too low, too
    ]
    if too_low:
        raise QualityError(
            f"the search is not good enough to be served: {'; '.join(too_low)}. Try another "
            f"--seed, or publish it all the same with {BUILD_COMMAND} --no-floor"
        )
