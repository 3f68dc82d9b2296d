import numpy as np
import pytest
import torch
from torch.nn import functional as F

from reverse_image_search.indexes.exact import ExactIndex
from reverse_image_search.indexes.ivf import (
    InvertedFileIndex,
    build_inverted_file,
    spherical_kmeans,
)

LOWEST = float(torch.finfo(torch.float32).min)
# Two lists: vectors near the first axis, and near the second.
VECTORS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.3], [0.3, 3.0]])
LISTS = torch.tensor([0, 1, 0, 1])


def two_lists(top_k: int, probes: int) -> InvertedFileIndex:
    ids = torch.tensor([5, 7, 9, 2**40])
    return InvertedFileIndex(VECTORS, ids, top_k, torch.eye(2), LISTS, probes)


def clusters(count: int) -> torch.Tensor:
    """(count, 16) unit vectors around 40 centers, as embeddings of classes are."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(40, 16, generator=generator)
    noise = torch.randn(count, 16, generator=generator)
    return F.normalize(centers[torch.arange(count) % 40] + 0.5 * noise)


def test_only_the_nearest_list_is_read():
    ids, scores = two_lists(top_k=2, probes=1)(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))

    assert ids.tolist() == [[5, 9], [7, 2**40]]
    cosine = 10 / 101**0.5  # of (1, 0) and (3, 0.3)
    assert scores.numpy() == pytest.approx(np.array([[1, cosine], [1, cosine]]))


def test_more_lists_are_read_until_there_are_k_neighbors():
    ids, scores = two_lists(top_k=4, probes=1)(torch.tensor([[1.0, 0.0]]))

    assert ids.tolist() == [[5, 9, 2**40, 7]]
    assert (scores.diff() < 0).all()


def test_a_gallery_smaller_than_top_k_is_padded():
    ids, scores = two_lists(top_k=6, probes=2)(torch.tensor([[1.0, 0.0]]))

    assert ids[0, 4:].tolist() == [-1, -1]
    assert scores[0, 4:].tolist() == [LOWEST, LOWEST]


def test_ties_rank_by_id():
    vectors = torch.eye(2)[[1, 0, 1, 0, 1]]
    index = InvertedFileIndex(
        vectors, torch.arange(5), 5, torch.eye(2), torch.tensor([1, 0, 1, 0, 1]), probes=2
    )

    assert index(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))[0].tolist() == [
        [0, 1, 2, 3, 4],
        [0, 2, 4, 1, 3],
    ]


def test_with_all_lists_probed_it_is_the_exact_index():
    gallery, queries = clusters(3000), clusters(3100)[3000:]
    index = build_inverted_file(gallery, torch.arange(3000), top_k=100, recall=1.0)
    index.probes = index.ranked_lists = len(index.centers)

    ids, scores = index(queries)

    expected_ids, expected = ExactIndex(gallery, torch.arange(3000), 100)(queries)
    assert (scores - expected).abs().max() < 2e-6
    assert (ids == expected_ids).float().mean() > 0.999  # but for ties within rounding


@pytest.mark.parametrize("recall", [0.9, 0.99])
def test_as_many_lists_are_probed_as_the_recall_needs(recall, capsys):
    gallery, queries = clusters(6000), clusters(6500)[6000:]
    index = build_inverted_file(gallery, torch.arange(6000), top_k=20, recall=recall)

    ids, _ = index(queries)

    expected, _ = ExactIndex(gallery, torch.arange(6000), 20)(queries)
    found = (ids[:, :, None] == expected[:, None]).any(1).float().mean()
    assert recall - 0.01 < found  # of other queries than those that the number was chosen on
    assert index.probes < len(index.centers) / 2
    assert f"{index.probes} of them probed" in capsys.readouterr().out


def test_kmeans_centers_are_the_directions_of_their_means():
    generator = torch.Generator().manual_seed(1)
    vectors = F.normalize(torch.eye(8)[:3].repeat(50, 1) + 0.1 * torch.randn(150, 8))

    centers = spherical_kmeans(vectors, 3, generator)

    nearest = (vectors @ centers.t()).argmax(1)
    for position, center in enumerate(centers):
        mean = F.normalize(vectors[nearest == position].mean(0), dim=0)
        assert center @ mean == pytest.approx(1, abs=1e-5)


def test_equal_embeddings_make_one_list():
    index = build_inverted_file(torch.ones(30, 4), torch.arange(30), top_k=40, recall=0.99)

    ids, scores = index(torch.ones(1, 4))

    assert len(index.centers) == 1
    assert ids[0].tolist() == [*range(30), *[-1] * 10]
    assert scores[0, :30].tolist() == pytest.approx([1.0] * 30)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_tiny_galleries(size):
    ids, scores = build_inverted_file(torch.eye(5)[:size], torch.arange(size), 5, recall=0.99)(
        torch.eye(5)[:1]
    )

    assert ids[0].tolist() == [*range(size), *[-1] * (5 - size)]
    assert scores[0, :size].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0, 0.0][:size])


def test_scripted_equals_eager_after_a_round_trip(tmp_path):
    gallery = clusters(2000)
    model = build_inverted_file(gallery, torch.arange(2000), 100, recall=0.95).eval()
    torch.jit.save(torch.jit.freeze(torch.jit.script(model)), tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    for batch in (1, 2, 32, 1):
        for ours, expected in zip(loaded(gallery[:batch]), model(gallery[:batch]), strict=True):
            assert torch.equal(ours, expected)
