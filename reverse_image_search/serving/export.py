"""Modules into a Triton model repository: TorchScript files and their configurations.

Triton's libtorch backend completes nothing by itself: every tensor of the contract stands in
``config.pbtxt`` (https://github.com/triton-inference-server/pytorch_backend).
"""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from reverse_image_search import contract

# Largest difference that folding batch norms into convolutions may make, of unit vectors.
_TOLERANCE = 1e-5


class ExportError(Exception):
    """An exported model does not give what the module gave that it was made from."""


def export_torchscript(module: nn.Module, path: Path) -> None:
    """Script `module`, freeze it (weights become constants, batch norms fold) and save it.

    Not ``optimize_for_inference``: its files do not load in another version of libtorch.
    """
    path.parent.mkdir(parents=True)
    with warnings.catch_warnings():
        # TorchScript is deprecated since 2.11 and stays what Triton's libtorch backend serves.
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.freeze(torch.jit.script(module.eval()))
        # Not straight into the file: a full disk would then be a RuntimeError among many.
        content = io.BytesIO()
        torch.jit.save(scripted, content)
    path.write_bytes(content.getvalue())


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load an exported file on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path), map_location="cpu").eval()


def check_export(exported: nn.Module, module: nn.Module, inputs: Tensor) -> float:
    """Compare what the exported file and its module answer to `inputs`.

    Returns
    -------
    the largest absolute difference over all outputs

    Raises
    ------
    ExportError : an output differs in type, in shape, or by more than rounding
    """
    with torch.inference_mode():
        answers = _as_tuple(exported(inputs)), _as_tuple(module(inputs))
    largest = 0.0
    for position, (ours, expected) in enumerate(zip(*answers, strict=True)):
        if ours.dtype != expected.dtype or ours.shape != expected.shape:
            raise ExportError(
                f"output {position} of the exported model is {ours.dtype} {tuple(ours.shape)}, "
                f"the module's is {expected.dtype} {tuple(expected.shape)}"
            )
        difference = (ours - expected).abs().max().item()
        if not difference <= _TOLERANCE:  # NaN, too, is a difference
            raise ExportError(f"the exported model differs from its module by {difference:.1e}")
        largest = max(largest, difference)
    return largest


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def model_config(
    model: contract.ModelSpec,
    build_id: str,
    embedding_dim: int,
    top_k: int,
    warmup_dims: tuple[int, ...],
) -> str:
    """Text of ``config.pbtxt`` for one model of the contract.

    It names no device, so that the same repository runs on CPU and GPU.

    Parameters
    ----------
    embedding_dim, top_k : D and K of this build
    warmup_dims : shape of one example input without the batch dimension; Triton runs it in
        several batch sizes before it calls the model READY
    """
    (warmup_input,) = model.inputs
    warmups = "\n".join(
        f'model_warmup {{\n  name: "batch of {size}"\n  batch_size: {size}\n'
        f'  inputs {{ key: "{warmup_input.name}" value {{ data_type: TYPE_{warmup_input.datatype} '
        f"dims: {list(warmup_dims)} random_data: true }} }}\n}}"
        for size in _warmup_sizes()
    )
    return f"""name: "{model.name}"
platform: "pytorch_libtorch"
max_batch_size: {contract.MAX_BATCH_SIZE}
{_tensors(model, embedding_dim, top_k)}
dynamic_batching {{ }}
# One thread each: with two models on a few cores, more threads only get in each other's way.
parameters {{ key: "INTRA_OP_THREAD_COUNT" value {{ string_value: "1" }} }}
parameters {{ key: "{contract.BUILD_ID_PARAMETER}" value {{ string_value: "{build_id}" }} }}
{warmups}
"""


def ensemble_config(build_id: str, embedding_dim: int, top_k: int) -> str:
    """Text of ``config.pbtxt`` for `image_search`: image in, ids and scores out, in one call.

    Triton hands the embeddings on by itself ("Ensemble Models" in its user guide).
    """
    (images,), (embeddings,) = contract.IMAGE_ENCODER.inputs, contract.IMAGE_ENCODER.outputs
    (query_embeddings,) = contract.VECTOR_SIMILARITY.inputs
    answers = "\n".join(
        f'    output_map {{ key: "{answer.name}" value: "{answer.name}" }}'
        for answer in contract.VECTOR_SIMILARITY.outputs
    )
    return f"""name: "{contract.IMAGE_SEARCH.name}"
platform: "ensemble"
max_batch_size: {contract.MAX_BATCH_SIZE}
{_tensors(contract.IMAGE_SEARCH, embedding_dim, top_k)}
ensemble_scheduling {{
  step {{
    model_name: "{contract.IMAGE_ENCODER.name}"
    model_version: -1
    input_map {{ key: "{images.name}" value: "{images.name}" }}
    output_map {{ key: "{embeddings.name}" value: "embeddings" }}
  }}
  step {{
    model_name: "{contract.VECTOR_SIMILARITY.name}"
    model_version: -1
    input_map {{ key: "{query_embeddings.name}" value: "embeddings" }}
{answers}
  }}
}}
parameters {{ key: "{contract.BUILD_ID_PARAMETER}" value {{ string_value: "{build_id}" }} }}
"""


def _tensors(model: contract.ModelSpec, embedding_dim: int, top_k: int) -> str:
    sizes = {contract.EMBEDDING_DIM: embedding_dim, contract.TOP_K: top_k}
    return "\n".join(
        f'{kind} [\n  {{ name: "{spec.name}" data_type: TYPE_{spec.datatype} '
        f"dims: {list(spec.dims(**sizes))} }}\n]"
        for kind, specs in (("input", model.inputs), ("output", model.outputs))
        for spec in specs
    )


def _warmup_sizes() -> list[int]:
    """1, 2, 4, ... up to the largest batch."""
    sizes = [1]
    while sizes[-1] < contract.MAX_BATCH_SIZE:
        sizes.append(min(2 * sizes[-1], contract.MAX_BATCH_SIZE))
    return sizes
