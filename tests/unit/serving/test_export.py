import importlib.util
import math
from pathlib import Path

import pytest
import torch
import tritonclient
from google.protobuf import text_format
from torch import nn

from reverse_image_search import contract
from reverse_image_search.encoders.embedding import to_pixels
from reverse_image_search.encoders.fashion import FashionEncoder
from reverse_image_search.indexes.exact import VectorSimilarity
from reverse_image_search.serving.export import (
    ExportError,
    check_export,
    export_torchscript,
    load_torchscript,
    model_config,
)
from reverse_image_search.training.train import fold_batch_norms


def parse_config(text: str):
    """Read a config.pbtxt with Triton's own schema, which refuses every unknown word."""
    # Loaded by file: the package around it wants gRPC, which the project does not install.
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return text_format.Parse(text, schema.ModelConfig())


@pytest.fixture(scope="module")
def encoder() -> FashionEncoder:
    """An encoder with random weights and batch statistics that are not the initial ones."""
    torch.manual_seed(0)
    encoder = FashionEncoder().train()
    with torch.no_grad():
        encoder.instance_embedding(encoder.features(torch.rand(16, 1, 28, 28)))
    return fold_batch_norms(encoder.eval())


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (64, 3, 28, 28), (2, 3, 57, 31), (3, 3, 1, 1)])
def test_exported_encoder_equals_the_eager_one(encoder, tmp_path, shape):
    path = tmp_path / "1" / "model.pt"
    images = torch.rand(shape)

    export_torchscript(encoder, path)
    exported = load_torchscript(path)

    assert check_export(exported, encoder, images) <= 1e-5
    lengths = exported(images).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(len(images)))


def test_exported_similarity_equals_the_eager_one(tmp_path):
    torch.manual_seed(0)
    similarity = VectorSimilarity(torch.randn(500, 16), top_k=7)
    path = tmp_path / "1" / "model.pt"

    export_torchscript(similarity, path)

    assert check_export(load_torchscript(path), similarity, torch.randn(9, 16)) <= 1e-6


def test_exported_similarity_gives_hand_checked_neighbors(tmp_path):
    # East, north-east and north; the query looks east-north-east, 22.5 degrees from the first two.
    gallery = torch.tensor([[2.0, 0.0], [3.0, 3.0], [0.0, 1.0]])
    degrees_20 = math.radians(20)
    query = torch.tensor([[math.cos(degrees_20), math.sin(degrees_20)]])
    path = tmp_path / "1" / "model.pt"

    export_torchscript(VectorSimilarity(gallery, top_k=3), path)
    ids, scores = load_torchscript(path)(query)

    assert ids.tolist() == [[0, 1, 2]]
    expected = [[math.cos(math.radians(angle)) for angle in (20, 25, 70)]]
    torch.testing.assert_close(scores, torch.tensor(expected))


class Answer(nn.Module):
    """Answers what it was made with."""

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


def test_rounding_is_no_difference():
    assert check_export(Answer(ONES + 1e-6), Answer(ONES), ONES) == pytest.approx(1e-6, rel=0.1)


@pytest.mark.parametrize("model", contract.MODELS, ids=lambda model: model.name)
def test_config_says_what_the_contract_says(model):
    config = parse_config(model_config(model, "abc123", 96, 20, warmup_dims=(3, 28, 28)))
    sizes = {"D": 96, "K": 20}

    assert config.name == model.name
    assert config.platform == "pytorch_libtorch"
    assert config.max_batch_size == contract.MAX_BATCH_SIZE
    assert config.HasField("dynamic_batching")
    assert config.parameters[contract.BUILD_ID_PARAMETER].string_value == "abc123"
    for served, specs in ((config.input, model.inputs), (config.output, model.outputs)):
        assert [tensor.name for tensor in served] == [spec.name for spec in specs]
        assert [tuple(tensor.dims) for tensor in served] == [spec.dims(**sizes) for spec in specs]
    assert not config.instance_group, "the same repository must run on CPU and GPU"


def test_config_sets_no_thread_count_that_aborts_the_server():
    """Two models with INTER_OP_THREAD_COUNT end Triton's libtorch backend at start."""
    for model in contract.MODELS:
        config = parse_config(model_config(model, "x", 96, 20, warmup_dims=(96,)))
        assert "INTER_OP_THREAD_COUNT" not in config.parameters
        assert config.parameters["INTRA_OP_THREAD_COUNT"].string_value == "1"


def test_warmup_runs_small_and_large_batches():
    config = parse_config(model_config(contract.IMAGE_ENCODER, "x", 96, 20, (3, 28, 28)))

    sizes = [warmup.batch_size for warmup in config.model_warmup]
    assert sizes[0] == 1
    assert sizes[-1] == contract.MAX_BATCH_SIZE
    for warmup in config.model_warmup:
        assert tuple(warmup.inputs["INPUT__0"].dims) == (3, 28, 28)


def test_configs_of_a_build_agree_with_its_model_files(small_build, fashion_mnist):
    """The numbers in the configuration are those that the files really give."""
    outputs = to_pixels(fashion_mnist.test_images[:5])
    for model in contract.MODELS:
        folder = small_build / "model_repo" / model.name
        config = parse_config((folder / "config.pbtxt").read_text())
        inputs = outputs[0] if isinstance(outputs, tuple) else outputs
        with torch.inference_mode():
            outputs = load_torchscript(folder / "1" / "model.pt")(inputs)

        (expected,) = config.input
        assert len(expected.dims) == inputs.dim() - 1
        assert all(
            wanted in (-1, given)
            for wanted, given in zip(expected.dims, inputs.shape[1:], strict=True)
        )
        tensors = outputs if isinstance(outputs, tuple) else (outputs,)
        assert [tuple(tensor.shape) for tensor in tensors] == [
            (5, *output.dims) for output in config.output
        ]
        triton_types = {torch.float32: "TYPE_FP32", torch.int64: "TYPE_INT64"}
        data_type = config.output[0].DESCRIPTOR.fields_by_name["data_type"].enum_type
        assert [triton_types[tensor.dtype] for tensor in tensors] == [
            data_type.values_by_number[output.data_type].name for output in config.output
        ]
