"""Retrieval metrics, one value per query, without torch.

Rankings are by cosine similarity, best first; equal scores rank by id.
Definitions: Musgrave, Belongie and Lim 2020, "A Metric Learning Reality Check",
https://arxiv.org/abs/2003.08505.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

_CHUNK = 100  # queries ranked at once: 100 x 60,000 scores are 24 MB, and a dozen such arrays


@dataclass
class Scores:
    """All numbers of one encoder, one value per query."""

    category_level: dict[str, np.ndarray]  # by metric; empty without labels
    instance_level: dict[str, dict[str, np.ndarray]]  # by kind of perturbed copy, and metric
    # Recall of an approximate index against exact search, by metric; empty for an exact one.
    index_level: dict[str, np.ndarray] = field(default_factory=dict)


def score_category_level(
    query_embeddings: np.ndarray,
    query_labels: np.ndarray,
    gallery_embeddings: np.ndarray,
    gallery_labels: np.ndarray,
    own_rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Category-level retrieval: how well a ranking of the gallery puts the query's class first.

    Embeddings are (n, D) and (N, D) float32 of unit length, labels (n,) and (N,) int. Where the
    queries are of the gallery themselves, at `own_rows` (n,), each is left out of its own ranking.

    Returns
    -------
    (n,) float64 for each of ``precision_at_1``, ``precision_at_20``, ``map`` (average precision
    over the whole gallery) and ``map_at_r``
    """
    chunks = []
    for queries, similarity in _similarities(query_embeddings, gallery_embeddings):
        if own_rows is not None:
            np.put_along_axis(similarity, own_rows[queries, None], -2, axis=1)  # the last
        hits = ranked_hits(similarity, query_labels[queries, None] == gallery_labels)
        if own_rows is not None:
            hits = hits[:, :-1]
        chunks.append([precision_at(hits, 1), precision_at(hits, 20), *average_precisions(hits)])
    names = ("precision_at_1", "precision_at_20", "map", "map_at_r")
    return dict(zip(names, np.concatenate(chunks, axis=1), strict=True))


def ranked_hits(similarity: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Order `relevant` by descending `similarity`, both (n, N); equal scores by index.

    Score, index and relevance are packed into one integer, because NumPy sorts integers many
    times faster than it finds the permutation that sorts floats.
    """
    bits = (similarity.astype(np.float32, copy=False) + np.float32(0.0)).view(np.int32)
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64)  # as the floats order
    keys = (ordered << 32) | (np.arange(similarity.shape[1])[::-1] << 1) | relevant
    keys.sort(axis=1)
    return (keys[:, ::-1] & 1).astype(bool)


def precision_at(hits: np.ndarray, k: int) -> np.ndarray:
    """Share of hits among the first `k`, (n,), of ranked `hits` (n, N)."""
    return hits[:, :k].mean(axis=1)


def average_precisions(hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and MAP@R of ranked `hits` (n, N), (n,) each; 0 where nothing is relevant.

    Average precision is the mean, over all R relevant images, of the precision at their rank.
    MAP@R counts only those among the first R.
    """
    relevant = hits.sum(axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    earned = precision * hits
    among_first_r = np.arange(hits.shape[1]) < relevant[:, None]
    divisor = np.maximum(relevant, 1)
    return earned.sum(axis=1) / divisor, (earned * among_first_r).sum(axis=1) / divisor


def ranks_of_originals(
    copy_embeddings: np.ndarray, original_ids: np.ndarray, gallery_embeddings: np.ndarray
) -> np.ndarray:
    """Rank, 1 is best, at which each copy finds its original, a row of the gallery: (n,) int64."""
    ids = np.arange(len(gallery_embeddings))
    ranks = []
    for copies, similarity in _similarities(copy_embeddings, gallery_embeddings):
        own_ids = original_ids[copies, None]
        own_scores = np.take_along_axis(similarity, own_ids, axis=1)
        before = (similarity > own_scores) | ((similarity == own_scores) & (ids < own_ids))
        ranks.append(1 + before.sum(axis=1))
    return np.concatenate(ranks)


def recall_at(ranks: np.ndarray, k: int) -> np.ndarray:
    """1.0 if the original is among the first `k`, else 0.0; (n,) for `ranks` (n,)."""
    return (ranks <= k).astype(np.float64)


def recalls(ranks: np.ndarray) -> dict[str, np.ndarray]:
    """`recall_at` 1 and 20, by name."""
    return {f"recall_at_{k}": recall_at(ranks, k) for k in (1, 20)}


def bootstrap_interval(
    values: np.ndarray, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Confidence interval of the mean of `values` (n,): percentiles over resampled queries
    (Efron 1979).
    """
    generator = np.random.default_rng(seed)
    n = len(values)
    means = [values[generator.integers(n, size=n)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def format_interval(values: np.ndarray) -> str:
    """Mean and confidence interval as ``0.929 [0.923, 0.933]``."""
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def _similarities(
    query_embeddings: np.ndarray, gallery_embeddings: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    if query_embeddings.shape[1:] != gallery_embeddings.shape[1:]:
        raise ValueError(
            "queries and gallery must be (n, D) and (N, D), "
            f"got {query_embeddings.shape} and {gallery_embeddings.shape}"
        )
    for start in range(0, len(query_embeddings), _CHUNK):
        rows = slice(start, start + _CHUNK)
        yield rows, query_embeddings[rows] @ gallery_embeddings.T
