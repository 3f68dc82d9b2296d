"""Find near-duplicates in a gallery, through the served index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from reverse_image_search import contract
from reverse_image_search.client.client import Client
from reverse_image_search.client.same_photo import SamePhotoCheck
from reverse_image_search.client.search import check_identity
from reverse_image_search.gallery import Gallery, rows_of

_REQUESTS_IN_FLIGHT = 4
_CANDIDATES = 5  # nearest neighbors of an image that may be of the same photo
_ROWS_AT_ONCE = 1000  # of the gallery file: a thumbnail is some 10 kB


class DuplicateGroup(NamedTuple):
    """One image worth keeping, and its near-duplicates."""

    ids: np.ndarray  # (n,) int64: the image to keep, then the others, most similar first
    scores: np.ndarray  # (n,) float32, cosine similarity to the image to keep


class _Pairs(NamedTuple):
    """Pairs of similar images, and the images that may have more of them."""

    rows: np.ndarray  # (n,) int64, rows of the gallery's embeddings
    neighbor_rows: np.ndarray  # (n,) int64
    scores: np.ndarray  # (n,) float32
    cut_rows: np.ndarray  # (m,) int64, rows for which all K neighbors are similar enough


def find_duplicates(
    client: Client,
    gallery: Gallery,
    threshold: float,
    progress: Callable[[int, int], None] | None = None,
    same_photo: SamePhotoCheck | None = None,
) -> list[DuplicateGroup]:
    """Group images whose cosine similarity to the one worth keeping is at least `threshold`.

    With `same_photo`, pixels decide instead: these images, and nearest neighbors of lower scores,
    are grouped if they show the same photo as the one worth keeping.

    The image worth keeping is the largest in pixels, then the oldest file. From the best image of
    the gallery down, each image that is in no group yet gathers those in no group that are similar
    enough to it. So every image of a group resembles the one to keep: a chain of images, each
    slightly different from the last, does not become one group.

    The index answers with K neighbors. If all K of an image to keep are similar enough, it is
    compared with all embeddings of the gallery instead.

    Parameters
    ----------
    progress : called with the number of images searched for, and of all

    Returns
    -------
    Groups of at least two images or two files, largest group first. Files of equal content are
    one image: `Gallery.files` names them, the oldest first.

    Raises
    ------
    WrongAnswerError : the served models and the gallery do not belong together
    TritonError : the server did not answer
    """
    check_identity(client, gallery)
    ids, embeddings = gallery.embeddings()
    least_score = same_photo.least_score if same_photo else threshold
    pairs = _search_all(client, ids, embeddings, threshold, least_score, progress)
    check_identity(client, gallery)  # or the server was replaced meanwhile
    if same_photo:
        pairs = _of_same_photo(pairs, ids, threshold, same_photo)
    groups = [
        DuplicateGroup(ids[rows], scores)
        for rows, scores in _group(pairs, _best_first(gallery, ids, pairs), embeddings, threshold)
    ]
    grouped = np.concatenate([np.empty(0, np.int64), *(group.ids for group in groups)])
    alone = np.setdiff1d(gallery.ids_of_several_files(), grouped)
    groups += [DuplicateGroup(alone[i : i + 1], np.ones(1, np.float32)) for i in range(len(alone))]
    return sorted(groups, key=lambda group: -len(group.ids))


def _search_all(
    client: Client,
    ids: np.ndarray,
    embeddings: np.ndarray,
    threshold: float,
    least_score: float,
    progress: Callable[[int, int], None] | None,
) -> _Pairs:
    """Search for every image of the gallery.

    Pairs have scores of at least `threshold`, or, the nearest neighbors, of at least `least_score`.
    """

    def search(start: int) -> _Pairs:
        part = slice(start, start + contract.MAX_BATCH_SIZE)
        neighbor_ids, scores = client.find_similar(embeddings[part])
        # An index that was updated meanwhile may know images that `ids` does not.
        neighbor_rows = rows_of(neighbor_ids, ids)
        is_known = neighbor_rows >= 0
        is_close = (scores >= threshold) & is_known
        cut_rows = start + np.flatnonzero(is_close.all(axis=1))
        nearest = slice(_CANDIDATES + 1)  # the first is the image itself
        is_close[:, nearest] |= (scores >= least_score)[:, nearest] & is_known[:, nearest]
        is_close &= neighbor_ids != ids[part, None]
        positions, ranks = np.nonzero(is_close)
        return _Pairs(
            start + positions, neighbor_rows[positions, ranks], scores[positions, ranks], cut_rows
        )

    parts = []
    with ThreadPoolExecutor(_REQUESTS_IN_FLIGHT) as executor:
        try:
            for part in executor.map(search, range(0, len(ids), contract.MAX_BATCH_SIZE)):
                parts.append(part)
                if progress:
                    progress(min(len(parts) * contract.MAX_BATCH_SIZE, len(ids)), len(ids))
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise
    return _Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def _of_same_photo(
    pairs: _Pairs, ids: np.ndarray, threshold: float, same_photo: SamePhotoCheck
) -> _Pairs:
    """Leave out pairs that do not show the same photo."""
    rows = np.sort(np.stack([pairs.rows, pairs.neighbor_rows], axis=1), axis=1)
    candidates, positions = np.unique(rows, axis=0, return_inverse=True)
    are_similar = np.zeros(len(candidates), bool)
    are_similar[positions[pairs.scores >= threshold]] = True
    is_pair = same_photo(ids[candidates], are_similar)[positions]
    checked = (pairs.rows[is_pair], pairs.neighbor_rows[is_pair], pairs.scores[is_pair])
    return _Pairs(*checked, cut_rows=pairs.cut_rows[:0])  # scores alone group nothing


def _best_first(gallery: Gallery, ids: np.ndarray, pairs: _Pairs) -> np.ndarray:
    """Rows that are in a pair, the largest image first, of equal ones the oldest file."""
    rows = np.unique(np.concatenate([pairs.rows, pairs.neighbor_rows]))
    pixels, oldest = [], []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = ids[rows[start : start + _ROWS_AT_ONCE]]
        pixels += [image.width * image.height for image in gallery.images(part)]
        modified = {file.image_id: file.modified_ns for file in reversed(gallery.files(part))}
        oldest += [modified.get(image_id, 0) for image_id in part.tolist()]
    return rows[np.lexsort([np.array(oldest, int), -np.array(pixels, int)])]


def _group(
    pairs: _Pairs, best_first: np.ndarray, embeddings: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and scores of each group, the one to keep first."""
    # Both ways: an approximate index may find the one from the other, but not back.
    rows = np.concatenate([pairs.rows, pairs.neighbor_rows])
    neighbor_rows = np.concatenate([pairs.neighbor_rows, pairs.rows])
    scores = np.concatenate([pairs.scores, pairs.scores])
    order = np.lexsort((neighbor_rows, rows))
    rows, neighbor_rows, scores = rows[order], neighbor_rows[order], scores[order]
    is_cut = np.zeros(len(embeddings), bool)
    is_cut[pairs.cut_rows] = True
    is_taken = np.zeros(len(embeddings), bool)
    for kept in best_first:
        if is_taken[kept]:
            continue
        is_taken[kept] = True
        part = slice(*np.searchsorted(rows, [kept, kept + 1]))
        candidates, first = np.unique(neighbor_rows[part], return_index=True)
        candidate_scores = scores[part][first]
        if is_cut[kept]:
            similarity = embeddings @ embeddings[kept]
            candidates = np.union1d(candidates, np.flatnonzero(similarity >= threshold))
            candidate_scores = similarity[candidates]
        is_free = ~is_taken[candidates]
        if not is_free.any():
            continue
        members, member_scores = candidates[is_free], candidate_scores[is_free]
        by_score = np.argsort(-member_scores, kind="stable")
        is_taken[members] = True
        yield (
            np.concatenate([[kept], members[by_score]]),
            np.concatenate([[1], member_scores[by_score]]).astype(np.float32),
        )
