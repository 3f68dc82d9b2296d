"""Export modules to TorchScript files that Triton serves."""

import io
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class ExportError(Exception):
    """The outputs of an exported model differ from those of its module."""


class _Reshaped(nn.Module):
    """`module` behind the `reshape` of its configuration: (batch, 1, *dims) -> (batch, *dims).

    Triton's core drops a batch dimension that is 0, so a request of shape (0, 3, height, width)
    arrives as (3, height, width). Without `reshape` it counts as three images and is batched with
    other requests, which then get wrong answers. With it, it is one image.
    """

    def __init__(self, module: nn.Module, input_ndim: int):
        super().__init__()
        self.module = module
        self.last_batch_dim = -input_ndim  # `input_ndim` counts the batch dimension

    def forward(self, inputs: Tensor):
        return self.module(inputs.flatten(0, self.last_batch_dim))


def write_model_files(
    files: Mapping[str, nn.Module | bytes], version_folder: Path, input_ndim: int
) -> None:
    """Write the files of one version of a model; modules are exported to TorchScript."""
    version_folder.mkdir(parents=True)
    for name, content in files.items():
        if isinstance(content, nn.Module):
            content = _torchscript(content, input_ndim)
        (version_folder / name).write_bytes(content)


def _torchscript(module: nn.Module, input_ndim: int) -> bytes:
    """Script `module`, freeze it (weights become constants, batch norms fold) and serialize it.

    Not ``optimize_for_inference``: its files do not load in another version of libtorch.
    """
    with warnings.catch_warnings():
        # TorchScript is deprecated since PyTorch 2.11; Triton's libtorch backend still serves it.
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.freeze(torch.jit.script(_Reshaped(module, input_ndim).eval()))
        # Not directly to the file, where a full disk raises a RuntimeError instead of an OSError.
        content = io.BytesIO()
        torch.jit.save(scripted, content)
    return content.getvalue()


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """Load an exported file on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(path), map_location="cpu").eval()


def check_export(
    exported: nn.Module, module: nn.Module, inputs: Tensor, tolerance: float = 1e-5
) -> float:
    """Largest absolute difference of an exported model's outputs from those of its module.

    Raises ExportError when an output differs in type, in shape, or by more than `tolerance`.
    """
    with torch.inference_mode():
        answers = [model(inputs) for model in (exported, module)]
    outputs = ((answer,) if isinstance(answer, Tensor) else answer for answer in answers)
    largest = 0.0
    for position, (ours, expected) in enumerate(zip(*outputs, strict=True)):
        if ours.dtype != expected.dtype or ours.shape != expected.shape:
            raise ExportError(
                f"output {position} of the exported model is {ours.dtype} {tuple(ours.shape)}, "
                f"the module's is {expected.dtype} {tuple(expected.shape)}"
            )
        difference = (ours - expected).abs().max().item()
        if not difference <= tolerance:  # NaN counts as a difference
            raise ExportError(f"the exported model differs from its module by {difference:.1e}")
        largest = max(largest, difference)
    return largest
