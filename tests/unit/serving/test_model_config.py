"""Configurations, read with Triton's own schema."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient
from google.protobuf import text_format

from reverse_image_search import contract, layout
from reverse_image_search.encoders.embedding import to_pixels
from reverse_image_search.serving.export import load_torchscript
from reverse_image_search.serving.model_config import (
    ServerSettings,
    ensemble_config,
    model_config,
)


def parse_config(text: str):
    """Read a config.pbtxt with Triton's own schema, which rejects unknown fields."""
    # Loaded by file: its package requires gRPC, which the project does not install.
    path = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    schema = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schema)
    return text_format.Parse(text, schema.ModelConfig())


def config_of(model: contract.ModelSpec, example_dims=(96,), **options):
    sizes = {"embedding_dim": 96, "top_k": 20}
    text = model_config(
        model, **sizes, example_dims=example_dims, parameters={"encoder_id": "abc123"}, **options
    )
    return parse_config(text)


@pytest.mark.parametrize("model", contract.MODELS, ids=lambda model: model.name)
def test_config_matches_the_contract(model):
    config = config_of(model, example_dims=(3, 28, 28))
    sizes = {"D": 96, "K": 20}

    assert config.name == model.name
    assert config.platform == "pytorch_libtorch"
    assert config.max_batch_size == contract.MAX_BATCH_SIZE
    assert config.HasField("dynamic_batching")
    assert config.parameters[contract.ENCODER_ID_PARAMETER].string_value == "abc123"
    for served, specs in ((config.input, model.inputs), (config.output, model.outputs)):
        assert [tensor.name for tensor in served] == [spec.name for spec in specs]
        assert [tuple(tensor.dims) for tensor in served] == [spec.dims(**sizes) for spec in specs]
    assert not config.instance_group, "the same repository must run on CPU and GPU"


def test_config_sets_no_thread_count_that_aborts_the_server():
    """Two models with INTER_OP_THREAD_COUNT end Triton's libtorch backend at start."""
    for model in contract.MODELS:
        config = config_of(model)
        assert "INTER_OP_THREAD_COUNT" not in config.parameters
        assert config.parameters["INTRA_OP_THREAD_COUNT"].string_value == "1"


def test_warmup_runs_small_and_large_batches():
    config = config_of(contract.IMAGE_ENCODER, example_dims=(3, 224, 192))

    sizes = [warmup.batch_size for warmup in config.model_warmup]
    assert sizes[0] == 1
    assert sizes[-1] == contract.MAX_BATCH_SIZE
    for warmup in config.model_warmup:
        assert tuple(warmup.inputs["INPUT__0"].dims) == (3, 224, 192)


def test_configs_of_a_build_agree_with_its_model_files(small_build, fashion_mnist):
    """The sizes in the configuration are those of the files' outputs."""
    queries = [fashion_mnist.queries[i].pixels for i in range(5)]
    outputs = to_pixels(np.stack(queries))
    for model in contract.MODELS:
        model_repo = small_build / layout.MODEL_REPO
        config = parse_config(layout.config_file(model_repo, model.name).read_text())
        inputs = outputs[0] if isinstance(outputs, tuple) else outputs
        with torch.inference_mode():
            outputs = load_torchscript(layout.model_file(model_repo, model.name))(inputs)

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


def test_inputs_are_reshaped_so_that_a_batch_of_0_is_one_image():
    encoder, index = (config_of(model) for model in contract.MODELS)

    assert list(encoder.input[0].reshape.shape) == [1, 3, -1, -1]
    assert list(index.input[0].reshape.shape) == [1, 96]


def test_server_settings_are_in_the_config():
    config = config_of(
        contract.IMAGE_ENCODER,
        settings=ServerSettings(instance_count=2, intra_op_threads=3, max_queue_delay=500),
    )

    assert config.instance_group[0].count == 2
    assert config.parameters["INTRA_OP_THREAD_COUNT"].string_value == "3"
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    settings = ServerSettings(dynamic_batching=False)
    unbatched = config_of(contract.IMAGE_ENCODER, settings=settings)
    assert not unbatched.HasField("dynamic_batching")


def test_the_ensemble_passes_the_embeddings_on():
    config = parse_config(ensemble_config(96, 20, {"gallery_id": "g"}))

    encoder, index = config.ensemble_scheduling.step
    assert encoder.model_name == "image_encoder"
    assert index.model_name == "vector_similarity"
    assert encoder.output_map["OUTPUT__0"] == index.input_map["INPUT__0"]
    assert [output.name for output in config.output] == ["OUTPUT__0", "OUTPUT__1"]
    assert config.parameters["gallery_id"].string_value == "g"
