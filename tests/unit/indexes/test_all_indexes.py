"""What every index of the registry answers: ids, falling cosines, padding."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from reverse_image_search.indexes import INDEXES, IndexOptions
from reverse_image_search.indexes.exact import ExactIndex

LOWEST = float(torch.finfo(torch.float32).min)
Build = Callable[[list, list, int], nn.Module]


@pytest.fixture(params=INDEXES)
def build(request: pytest.FixtureRequest) -> Iterator[Build]:
    """``build(embeddings, ids, top_k)``; what it made in a database is dropped afterwards."""
    spec = INDEXES[request.param]
    if spec.database:
        request.getfixturevalue("milvus")
    names = []

    def build_index(embeddings, ids, top_k: int) -> nn.Module:
        names.append(f"test_{len(names)}")
        options = IndexOptions(top_k, name=names[-1])
        return spec.build(torch.as_tensor(embeddings), torch.as_tensor(ids), options).eval()

    yield build_index
    for name in names if spec.database else ():
        spec.database.drop(name)


def test_ids_and_falling_scores_that_a_reader_can_check(build: Build):
    index = build([[0.0, 5.0], [3.0, 4.0], [2.0, 0.0], [-1.0, 0.0]], [3, 7, 40, 2**40], top_k=6)

    ids, scores = index(torch.tensor([[1.0, 0.0], [1e-38, 0.0], [float("nan"), 2.0]]))

    assert ids.dtype == torch.int64
    assert ids[:2].tolist() == [[40, 7, 3, 2**40, -1, -1]] * 2
    best = [1.0, 0.6, 0.0, -1.0]
    assert scores[:2, :4].numpy() == pytest.approx(np.array([best] * 2), abs=1e-6)
    assert scores[:, 4:].tolist() == [[LOWEST] * 2] * 3
    # NaN counts as 0; ties by ascending id.
    assert ids[2, :4].tolist() == [3, 7, 40, 2**40]
    assert scores[2, :4].tolist() == pytest.approx([1.0, 0.8, 0.0, 0.0], abs=1e-6)


def test_almost_all_neighbors_are_those_of_exact_search_in_batches_of_any_size(build: Build):
    generator = torch.Generator().manual_seed(0)
    gallery = torch.randn(2000, 16, generator=generator)
    queries = torch.randn(65, 16, generator=generator)
    index = build(gallery, torch.arange(2000), top_k=20)

    answers = [index(part) for part in queries.split([1, 64])]

    ids, scores = (torch.cat(parts) for parts in zip(*answers, strict=True))
    expected, best = ExactIndex(gallery, torch.arange(2000), 20)(queries)
    found = (ids[:, :, None] == expected[:, None]).any(1).float().mean()
    assert found > 0.97
    assert (scores.diff() <= 0).all()
    assert (scores - best).abs().mean() < 0.01
