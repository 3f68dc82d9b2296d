import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reverse_image_search.indexes import exact
from reverse_image_search.indexes.exact import ExactIndex

# Float32 rounds a product of two unit vectors by less than this.
ROUNDING = 2e-6
LOWEST = float(torch.finfo(torch.float32).min)


def search(gallery, queries, top_k=100):
    with torch.inference_mode():
        gallery = torch.as_tensor(gallery)
        return ExactIndex(gallery, torch.arange(len(gallery)), top_k)(torch.as_tensor(queries))


def oracle_scores(gallery, queries):
    """All cosines (batch, N) in float64, by NumPy."""

    def unit(vectors):
        vectors = np.asarray(vectors, np.float64)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    return unit(queries) @ unit(gallery).T


def assert_exact(gallery, queries, top_k):
    """The k-th score is the oracle's k-th best, belongs to its id, and ties have ascending ids."""
    ids, scores = (output.numpy() for output in search(gallery, queries, top_k))
    expected = oracle_scores(gallery, queries)
    best = -np.sort(-expected, axis=1)[:, :top_k]
    assert ids.shape == scores.shape == best.shape
    np.testing.assert_allclose(scores, best, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(np.take_along_axis(expected, ids, 1), scores, rtol=0, atol=ROUNDING)
    falls = scores[:, :-1] > scores[:, 1:]
    ties = (scores[:, :-1] == scores[:, 1:]) & (ids[:, :-1] < ids[:, 1:])
    assert (falls | ties).all()


def test_scores_of_vectors_that_a_reader_can_check():
    gallery = [[0.0, 5.0], [3.0, 4.0], [2.0, 0.0], [-1.0, 0.0]]
    ids, scores = search(gallery, [[1.0, 0.0], [0.0, 0.1]], top_k=4)
    assert ids.tolist() == [[2, 1, 0, 3], [0, 1, 2, 3]]
    expected = np.array([[1.0, 0.6, 0.0, -1.0], [1.0, 0.8, 0.0, 0.0]])
    assert scores.numpy() == pytest.approx(expected)
    assert ids.dtype == torch.int64
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("dim", [1, 7, 64, 128, 3000])
@pytest.mark.parametrize(("size", "top_k"), [(1, 1), (40, 40), (1000, 1), (3203, 100)])
def test_equals_float64_numpy_search(size, dim, top_k):
    generator = torch.Generator().manual_seed(size + dim)
    gallery = torch.randn(size, dim, generator=generator)
    assert_exact(gallery, torch.randn(5, dim, generator=generator), top_k)


def test_a_gallery_smaller_than_top_k_is_padded():
    ids, scores = search(torch.eye(3), torch.eye(3), top_k=100)

    assert ids[:, :3].tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    assert scores[:, :3].tolist() == [[1.0, 0.0, 0.0]] * 3
    assert ids.shape == scores.shape == (3, 100)
    assert (ids[:, 3:] == -1).all()
    assert (scores[:, 3:] == LOWEST).all()


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 99, 100])
def test_padding_never_takes_the_place_of_a_neighbor(size):
    """Not even where all scores are negative: padding is below every cosine."""
    ids, scores = search(-torch.ones(size, 2), [[1.0, 1.0]], top_k=100)

    found = min(size, 100)
    assert ids[0].tolist() == [*range(found), *[-1] * (100 - found)]
    assert scores[0, :found].tolist() == pytest.approx([-1.0] * found)


def test_given_ids_are_returned():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    index = ExactIndex(embeddings, torch.tensor([7, 40, 2**40]), top_k=3)

    assert index(torch.tensor([[1.0, 0.0]]))[0].tolist() == [[7, 2**40, 40]]


def test_ties_rank_by_id():
    gallery = torch.eye(4)[[3, 0, 1, 0, 2] * 200]  # ids 1, 3, 6, 8, ... hold the query
    ids, scores = search(gallery, torch.eye(4)[:1], top_k=400)
    assert ids.tolist() == [[id_ for id_ in range(1000) if id_ % 5 in (1, 3)]]
    assert scores.tolist() == [[1.0] * 400]


def test_exact_for_nearly_equal_vectors():
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(64, generator=generator)
    gallery = center + 1e-4 * torch.randn(5000, 64, generator=generator)
    assert_exact(gallery, gallery[:3], top_k=100)


def test_exact_in_a_gallery_sorted_by_similarity():
    angles = torch.linspace(0, 3, 6000)
    gallery = torch.stack([angles.cos(), angles.sin()], dim=1)
    ids, _ = search(gallery, [[1.0, 0.0]], top_k=50)
    assert ids.tolist() == [list(range(50))]


def test_exact_for_very_different_magnitudes():
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-12, 0, 64)
    gallery = torch.randn(2000, 64, generator=generator) * scale
    gallery[:, 5] = 0.0
    queries = torch.randn(4, 64, generator=generator) * scale.flip(0)
    queries = torch.cat([queries, torch.eye(64)[[0, 5, 63]]])
    assert_exact(gallery, queries, top_k=20)


@pytest.mark.parametrize("length", [1e-38, 1e-20, 1.0, 1e38])
def test_the_length_of_a_query_does_not_matter(length):
    ids, scores = search([[3.0, 4.0], [0.0, 1.0]], [[length, 0.0]], top_k=2)
    assert ids.tolist() == [[0, 1]]
    assert scores.numpy() == pytest.approx(np.array([[0.6, 0.0]]))


def test_zero_and_non_finite_queries_have_a_defined_answer():
    nan, inf = float("nan"), float("inf")
    queries = torch.zeros(4, 8)
    queries[1] = nan
    queries[2, 0] = -inf
    queries[3, :2] = torch.tensor([inf, 2.0])  # counts as (0, 2, 0, ...)
    gallery = torch.eye(8)[torch.arange(800) % 8]
    ids, scores = search(gallery, queries, top_k=10)
    assert all(len(set(row)) == 10 for row in ids.tolist())
    assert scores[:3].tolist() == [[0.0] * 10] * 3
    assert set(ids[3].tolist()) <= set(range(1, 800, 8))
    assert scores[3].tolist() == [1.0] * 10


def test_an_answer_does_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    gallery, queries = (torch.randn(count, 64, generator=generator) for count in (6007, 33))
    ids, scores = search(gallery, queries)
    for start, stop in [(0, 1), (1, 3), (3, 11), (11, 33)]:
        some_ids, some_scores = search(gallery, queries[start:stop])
        assert torch.equal(some_ids, ids[start:stop])
        assert (some_scores - scores[start:stop]).abs().max() < ROUNDING


def test_many_queries_are_searched_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    gallery, queries = (torch.randn(count, 16, generator=generator) for count in (1000, 10))
    expected_ids, expected_scores = search(gallery, queries, 20)
    monkeypatch.setattr(exact, "_SCORES_AT_ONCE", 3000)

    ids, scores = search(gallery, queries, 20)

    assert torch.equal(ids, expected_ids)
    assert (scores - expected_scores).abs().max() < ROUNDING


def test_scripted_equals_eager_after_a_round_trip(tmp_path):
    generator = torch.Generator().manual_seed(0)
    model = ExactIndex(torch.randn(3000, 64, generator=generator), torch.arange(3000), 100).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(model)), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for batch in (1, 2, 32, 1):
        queries = torch.randn(batch, 64, generator=generator)
        for ours, expected in zip(loaded(queries), model(queries), strict=True):
            assert torch.equal(ours, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_answers():
    generator = torch.Generator().manual_seed(0)
    model = ExactIndex(torch.randn(6007, 64, generator=generator), torch.arange(6007), 100)
    queries = F.normalize(torch.randn(33, 64, generator=generator))
    ids, scores = model(queries)
    gpu_ids, gpu_scores = model.cuda()(queries.cuda())
    assert torch.equal(gpu_ids.cpu(), ids)
    assert (gpu_scores.cpu() - scores).abs().max() <= ROUNDING
