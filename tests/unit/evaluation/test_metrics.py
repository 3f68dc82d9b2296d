"""Metrics against numbers counted by hand and against plain loops."""

import numpy as np
import pytest

from reverse_image_search.evaluation.metrics import (
    average_precisions,
    bootstrap_interval,
    precision_at,
    ranked_hits,
    ranks_of_originals,
    recall_at,
    score_category_level,
)


def test_ranking_by_hand():
    similarity = np.array([[0.1, 0.9, 0.5, -0.3]], dtype=np.float32)  # ranking: 1, 2, 0, 3
    relevant = np.array([[True, False, True, False]])
    assert ranked_hits(similarity, relevant).tolist() == [[False, True, True, False]]


def test_equal_scores_come_in_the_order_of_their_ids():
    similarity = np.array([[0.5, 0.7, 0.5, 0.5]], dtype=np.float32)  # ranking: 1, 0, 2, 3
    relevant = np.array([[False, True, True, False]])
    assert ranked_hits(similarity, relevant).tolist() == [[True, False, True, False]]


def test_zero_and_minus_zero_are_equal():
    similarity = np.array([[-0.0, 0.0, -1e-30]], dtype=np.float32)
    relevant = np.array([[True, False, True]])
    assert ranked_hits(similarity, relevant).tolist() == [[True, False, True]]


def test_precision_by_hand():
    hits = np.array([[True, False, True, False], [False, False, True, True]])
    assert precision_at(hits, 1).tolist() == [1.0, 0.0]
    assert precision_at(hits, 3).tolist() == [pytest.approx(2 / 3), pytest.approx(1 / 3)]


def test_average_precision_and_map_at_r_by_hand():
    # Three relevant images at ranks 1, 3 and 4: precisions there 1, 2/3 and 3/4.
    hits = np.array([[True, False, True, True, False]])
    average_precision, map_at_r = average_precisions(hits)
    assert average_precision == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3])
    assert map_at_r == pytest.approx([(1 + 2 / 3) / 3])  # rank 4 is beyond R = 3


def test_a_query_with_nothing_relevant_scores_zero():
    average_precision, map_at_r = average_precisions(np.zeros((1, 4), dtype=bool))
    assert average_precision.tolist() == map_at_r.tolist() == [0.0]


def test_unit_vectors_by_hand():
    gallery = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], dtype=np.float32)
    labels = np.array([7, 3, 7, 7])
    queries = np.array([[1, 0], [0, 1]], dtype=np.float32)  # rankings: 0, 1, 2, 3 and 2, 1, 0, 3
    scores = score_category_level(queries, np.array([7, 3]), gallery, labels)
    assert scores["precision_at_1"].tolist() == [1.0, 0.0]
    assert scores["precision_at_20"].tolist() == [0.75, 0.25]  # a gallery of four
    assert scores["map"] == pytest.approx([(1 + 2 / 3 + 3 / 4) / 3, 1 / 2])
    assert scores["map_at_r"] == pytest.approx([(1 + 2 / 3) / 3, 0.0])


@pytest.mark.parametrize("seed", range(5))
def test_same_as_plain_loops_with_many_ties(seed: int):
    generator = np.random.default_rng(seed)
    # Few distinct values, so that most scores are ties.
    gallery = generator.integers(-1, 2, size=(60, 3)).astype(np.float32)
    queries = generator.integers(-1, 2, size=(25, 3)).astype(np.float32)
    gallery_labels, query_labels = generator.integers(3, size=60), generator.integers(4, size=25)
    scores = score_category_level(queries, query_labels, gallery, gallery_labels)
    for row, (query, label) in enumerate(zip(queries, query_labels, strict=True)):
        expected = _category_level_by_loops(query, label, gallery, gallery_labels)
        assert {name: values[row] for name, values in scores.items()} == pytest.approx(expected)


def _category_level_by_loops(query, label, gallery, gallery_labels) -> dict[str, float]:
    products = [sum(a * b for a, b in zip(query, vector, strict=True)) for vector in gallery]
    ranking = sorted(range(len(gallery)), key=lambda i: (-products[i], i))
    relevant = [gallery_labels[i] == label for i in ranking]
    found, precisions = 0, []
    for rank, hit in enumerate(relevant, start=1):
        found += hit
        if hit:
            precisions.append((rank, found / rank))
    return {
        "precision_at_1": float(relevant[0]),
        "precision_at_20": sum(relevant[:20]) / 20,
        "map": sum(p for _, p in precisions) / max(found, 1),
        "map_at_r": sum(p for rank, p in precisions if rank <= found) / max(found, 1),
    }


def test_rank_of_the_original_by_hand():
    gallery = np.array([[1, 0], [0.8, 0.6], [0, 1]], dtype=np.float32)
    copies = np.array([[1, 0], [1, 0], [0, 1]], dtype=np.float32)
    ranks = ranks_of_originals(copies, np.array([0, 2, 1]), gallery)
    assert ranks.tolist() == [1, 3, 2]
    assert recall_at(ranks, 1).tolist() == [1.0, 0.0, 0.0]
    assert recall_at(ranks, 2).tolist() == [1.0, 0.0, 1.0]


def test_of_two_equal_gallery_images_the_first_comes_first():
    gallery = np.array([[1, 0], [1, 0]], dtype=np.float32)
    copies = np.array([[1, 0], [1, 0]], dtype=np.float32)
    assert ranks_of_originals(copies, np.array([0, 1]), gallery).tolist() == [1, 2]


def test_a_query_of_the_gallery_is_left_out_of_its_own_ranking():
    angles = np.radians([0, 10, 90])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels, rows = np.array([0, 0, 1]), np.array([2, 0])

    scores = score_category_level(gallery[rows], labels[rows], gallery, labels, rows)

    assert scores["precision_at_1"].tolist() == [0, 1]  # nothing else has the label of the third
    assert scores["map"].tolist() == [0, 1]
    assert scores["precision_at_20"].tolist() == [0, 0.5]


def test_dimensions_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(5, 4\)"):
        ranks_of_originals(np.zeros((2, 3)), np.zeros(2, int), np.zeros((5, 4)))


def test_bootstrap_interval_of_a_constant_is_that_constant():
    assert bootstrap_interval(np.full(50, 0.25)) == (0.25, 0.25)


def test_bootstrap_interval_agrees_with_the_normal_approximation():
    values = (np.arange(1000) < 300).astype(float)  # 30 % hits
    low, high = bootstrap_interval(values)
    deviation = np.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - 1.96 * deviation, abs=0.005)
    assert high == pytest.approx(0.3 + 1.96 * deviation, abs=0.005)
