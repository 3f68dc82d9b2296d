import math

import pytest
import torch
from torch import nn

from reverse_image_search.encoders.fashion import FashionEncoder
from reverse_image_search.indexes.exact import ExactIndex
from reverse_image_search.serving.export import (
    ExportError,
    check_export,
    load_torchscript,
    write_model_files,
)
from reverse_image_search.training.train import fold_batch_norms


@pytest.fixture(scope="module")
def encoder() -> FashionEncoder:
    """An encoder with random weights and batch statistics that are not the initial ones."""
    torch.manual_seed(0)
    encoder = FashionEncoder().train()
    with torch.no_grad():
        encoder.heads(encoder.features(torch.rand(16, 1, 28, 28)))
    return fold_batch_norms(encoder.eval())


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (64, 3, 28, 28), (2, 3, 57, 31), (3, 3, 1, 1)])
def test_exported_encoder_equals_the_eager_one(encoder, tmp_path, shape):
    path = tmp_path / "1" / "model.pt"
    images = torch.rand(shape)

    write_model_files({path.name: encoder}, path.parent, input_ndim=4)
    exported = load_torchscript(path)

    assert check_export(exported, encoder, images) <= 1e-5
    lengths = exported(images).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(len(images)))


def test_exported_similarity_equals_the_eager_one(tmp_path):
    torch.manual_seed(0)
    index = ExactIndex(torch.randn(500, 16), torch.arange(500), top_k=7)
    path = tmp_path / "1" / "model.pt"

    write_model_files({path.name: index}, path.parent, input_ndim=2)

    assert check_export(load_torchscript(path), index, torch.randn(9, 16)) <= 1e-6


def test_exported_similarity_gives_hand_checked_neighbors(tmp_path):
    # East, north-east and north; the query points east-north-east, 22.5 degrees from the first two.
    gallery = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
    degrees_20 = math.radians(20)
    query = torch.tensor([[math.cos(degrees_20), math.sin(degrees_20)]])
    path = tmp_path / "1" / "model.pt"

    index = ExactIndex(gallery, torch.arange(3), top_k=3)
    write_model_files({path.name: index}, path.parent, input_ndim=2)
    ids, scores = load_torchscript(path)(query)

    assert ids.tolist() == [[0, 1, 2]]
    expected = [[math.cos(math.radians(angle)) for angle in (20, 25, 70)]]
    torch.testing.assert_close(scores, torch.tensor(expected))


class Answer(nn.Module):
    """Returns the tensors that it was constructed with."""

    def __init__(self, *outputs: torch.Tensor):
        super().__init__()
        self.outputs = outputs

    def forward(self, _inputs):
        return self.outputs if len(self.outputs) > 1 else self.outputs[0]


ONES = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("exported", "message"),
    [
        (Answer(ONES + 0.001), "differs from its module by 1.0e-03"),
        (Answer(ONES * math.nan), "differs from its module"),
        (Answer(torch.ones(2, 4)), r"\(2, 4\), the module's is torch.float32 \(2, 3\)"),
        (Answer(ONES.double()), "torch.float64"),
    ],
)
def test_an_export_that_differs_is_refused(exported, message):
    with pytest.raises(ExportError, match=message):
        check_export(exported, Answer(ONES), torch.zeros(2, 3))


def test_an_export_that_differs_in_the_second_output_only_is_refused():
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ExportError):
        check_export(Answer(ids, ONES * 0), Answer(ids, ONES), torch.zeros(2, 3))


def test_rounding_differences_are_accepted():
    assert check_export(Answer(ONES + 1e-6), Answer(ONES), ONES) == pytest.approx(1e-6, rel=0.1)


class Sizes(nn.Module):
    """Sum over everything but the batch dimension: one number for each image."""

    def forward(self, images):
        return images.sum(dim=(1, 2, 3))


def test_inputs_arrive_reshaped_as_the_configuration_says(tmp_path):
    """(batch, 1, 3, height, width); a request of (0, 3, h, w) loses its batch dimension."""
    write_model_files({"model.pt": Sizes()}, tmp_path / "1", input_ndim=4)
    exported = load_torchscript(tmp_path / "1" / "model.pt")

    assert exported(torch.ones(5, 1, 3, 2, 2)).tolist() == [12.0] * 5
    assert exported(torch.ones(5, 3, 2, 2)).tolist() == [12.0] * 5
    assert exported(torch.ones(1, 3, 2, 2)).tolist() == [12.0]


def test_bytes_are_written_unchanged(tmp_path):
    write_model_files({"model.py": b"class TritonPythonModel: ..."}, tmp_path / "1", input_ndim=2)

    assert (tmp_path / "1" / "model.py").read_bytes() == b"class TritonPythonModel: ..."
