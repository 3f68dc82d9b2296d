"""A toy dataset, encoder and index, registered in a few lines, are built, served and searched."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reverse_image_search import build_models, contract, layout
from reverse_image_search.client import Client
from reverse_image_search.datasets import (
    DATASETS,
    Dataset,
    DatasetOptions,
    DatasetSpec,
    LabeledImage,
)
from reverse_image_search.encoders import ENCODERS, EncoderSpec
from reverse_image_search.gallery import Gallery
from reverse_image_search.indexes import INDEXES, IndexOptions, IndexSpec
from tests.running import Triton

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "gray": (90, 90, 90)}


def load_colors(options: DatasetOptions) -> Dataset:
    """One image of each color, each of another size."""
    gallery = [
        LabeledImage(np.full((8 + i, 12 - i, 3), color, np.uint8), f"colors/{name}.png", name)
        for i, (name, color) in enumerate(COLORS.items())
    ]
    return Dataset("colors", gallery[: options.limit], [], list(COLORS))


class MeanColor(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(images.mean(dim=(2, 3)))


class OneByOne(nn.Module):
    """Compares the query with each embedding in turn."""

    def __init__(self, embeddings: Tensor, ids: Tensor, options: IndexOptions):
        super().__init__()
        self.register_buffer("embeddings", embeddings)
        self.register_buffer("ids", ids)
        self.top_k = min(options.top_k, len(ids))

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        scores = torch.stack([queries @ row for row in self.embeddings.unbind()], dim=1)
        best, positions = scores.topk(self.top_k)
        return self.ids[positions], best


@pytest.fixture
def toys(monkeypatch):
    monkeypatch.setitem(DATASETS, "colors", DatasetSpec(load_colors, default_encoder="mean_color"))
    monkeypatch.setitem(
        ENCODERS,
        "mean_color",
        EncoderSpec(
            make=lambda _dataset, _options: MeanColor(),
            input_size=(8, 8),
            is_grayscale=False,
            license="CC0-1.0",
            threads=2,
        ),
    )
    monkeypatch.setitem(INDEXES, "one_by_one", IndexSpec(build=OneByOne))


def test_toys_are_built_served_and_searched(
    toys, tmp_path: Path, start_triton: Callable[..., Triton]
):
    arguments = ["--dataset", "colors", "--index", "one_by_one", "--top-k", "4"]
    assert build_models.main([*arguments, "--output-dir", str(tmp_path)]) == 0

    client = Client(start_triton(tmp_path).url)
    pink = np.full((5, 5, 3), (255, 100, 100), np.uint8)
    neighbors = client.search([pink])

    gallery = Gallery(layout.gallery_file(tmp_path))
    found = gallery.images(neighbors.ids[0])
    # Cosines of (255, 100, 100): 0.943 gray, 0.875 red, 0.343 green and blue.
    assert [image.label for image in found][:2] == ["gray", "red"]
    assert found[1].source == "colors/red.png"
    assert (found[1].height, found[1].width) == (8, 12)
    length = (255**2 + 2 * 100**2) ** 0.5
    expected = [455 / 3**0.5 / length, 255 / length, 100 / length, 100 / length]
    np.testing.assert_allclose(neighbors.scores[0], expected, atol=1e-6)
    for model, threads in ((contract.IMAGE_ENCODER, "2"), (contract.VECTOR_SIMILARITY, "1")):
        parameters = client.model_config(model.name)["parameters"]
        assert parameters["INTRA_OP_THREAD_COUNT"]["string_value"] == threads
