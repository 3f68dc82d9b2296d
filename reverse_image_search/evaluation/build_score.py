"""The score that a build gives itself, and the floor under which it must not be served."""

from collections.abc import Callable

import numpy as np

from reverse_image_search.evaluation.copies import ALL, make_copies
from reverse_image_search.evaluation.metrics import (
    ranks_of_originals,
    recall_at,
    score_category_level,
)
from reverse_image_search.layout import BUILD_COMMAND

# A full build below these is broken: a training that works reaches 0.92 and 0.93.
FLOORS = {"precision_at_1": 0.90, "recall_at_1": 0.85}

_QUERIES = 2000  # enough to notice a broken training; evaluate.sh takes all
_COPIES = 1000


class QualityError(Exception):
    """The build's search is too bad to be served; the message says what to do."""


def score_embeddings(
    embed: Callable[[np.ndarray], np.ndarray],
    gallery_embeddings: np.ndarray,
    gallery_images: np.ndarray,
    gallery_labels: np.ndarray,
    query_images: np.ndarray,
    query_labels: np.ndarray,
) -> dict[str, float]:
    """Score an encoder on the first test images and on copies of some gallery images.

    Parameters
    ----------
    embed : (n, height, width) uint8 images -> (n, D) float32 embeddings of unit length
    gallery_embeddings : (N, D) float32, what `embed` gives for `gallery_images`
    gallery_images, query_images : (N, height, width) and (Q, height, width) uint8
    gallery_labels, query_labels : (N,) and (Q,) int

    Returns
    -------
    ``precision_at_1``, ``precision_at_20`` and ``map`` of images of the same kind;
    ``recall_at_1`` and ``recall_at_20`` of the originals of turned, moved, noisy copies
    """
    same_kind = score_category_level(
        embed(query_images[:_QUERIES]),
        np.asarray(query_labels[:_QUERIES]),
        gallery_embeddings,
        np.asarray(gallery_labels),
    )
    original_ids = draw_originals(len(gallery_images), _COPIES)
    copy_embeddings = embed(make_copies(gallery_images[original_ids], ALL))
    ranks = ranks_of_originals(copy_embeddings, original_ids, gallery_embeddings)
    return {
        "precision_at_1": float(same_kind["precision_at_1"].mean()),
        "precision_at_20": float(same_kind["precision_at_20"].mean()),
        "map": float(same_kind["map"].mean()),
        "recall_at_1": float(recall_at(ranks, 1).mean()),
        "recall_at_20": float(recall_at(ranks, 20).mean()),
    }


def draw_originals(gallery_size: int, count: int, seed: int = 0) -> np.ndarray:
    """Ids (count,) int64, rising, of gallery images to copy; all of a smaller gallery."""
    generator = np.random.default_rng(seed)
    return np.sort(generator.permutation(gallery_size)[:count])


def check_floors(score: dict[str, float]) -> None:
    """Refuse a score under `FLOORS`.

    Raises
    ------
    QualityError : names each number that is too low
    """
    too_low = [
        f"{name} is {score[name]:.3f}, at least {floor:.2f} is expected"
        for name, floor in FLOORS.items()
        if not score[name] >= floor  # NaN, too, is too low
    ]
    if too_low:
        raise QualityError(
            f"the search is not good enough to be served: {'; '.join(too_low)}. Try another "
            f"--seed, or publish it all the same with {BUILD_COMMAND} --no-floor"
        )
