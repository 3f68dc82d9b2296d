"""Triton backend `pytorch` in Python: serves TorchScript models of the tensor contract.

Stands in for the C++ libtorch backend where Triton comes from PyPI, without it. As a
Python-based backend it answers for every model whose configuration says
``platform: "pytorch_libtorch"``, so the same model repository runs on both
(https://github.com/triton-inference-server/python_backend, "Python based backends").
"""

import json
from pathlib import Path

import torch
import triton_python_backend_utils as pb_utils
from torch import Tensor
from torch.utils.dlpack import from_dlpack, to_dlpack


class TritonPythonModel:
    """One instance of one model; the name and the methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model onto the device that Triton names."""
        config = json.loads(args["model_config"])
        on_gpu = args["model_instance_kind"] == "GPU"
        self._device = torch.device(f"cuda:{args['model_instance_device_id']}" if on_gpu else "cpu")
        threads = config.get("parameters", {}).get("INTRA_OP_THREAD_COUNT", {}).get("string_value")
        if threads:
            torch.set_num_threads(int(threads))
        # Position is the number behind the underscores: OUTPUT__1 is element 1 of the tuple.
        self._input_names, self._output_names = (
            sorted((tensor["name"] for tensor in config[kind]), key=_position)
            for kind in ("input", "output")
        )
        filename = config.get("default_model_filename") or "model.pt"
        path = Path(args["model_repository"]) / args["model_version"] / filename
        self._module = torch.jit.load(str(path), map_location=self._device).eval()

    def execute(self, requests: list) -> list:
        """Answer a dynamic batch: one run of the model for all of its requests."""
        try:
            return self._run(requests)
        except Exception as error:
            if len(requests) > 1:
                # One bad request must not fail the others that Triton put beside it.
                return [response for request in requests for response in self.execute([request])]
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(_last_line(error)))]

    def _run(self, requests: list) -> list:
        arguments = []
        for name in self._input_names:
            tensors = (pb_utils.get_input_tensor_by_name(request, name) for request in requests)
            parts = [from_dlpack(tensor.to_dlpack()) for tensor in tensors]
            batch = parts[0] if len(parts) == 1 else torch.cat(parts)
            arguments.append(batch.to(self._device))
        with torch.inference_mode():
            outputs = self._module(*arguments)
        if isinstance(outputs, Tensor):
            outputs = (outputs,)
        sizes = [len(part) for part in parts]
        splits = [output.contiguous().split(sizes) for output in outputs]
        return [
            pb_utils.InferenceResponse(
                [
                    pb_utils.Tensor.from_dlpack(name, to_dlpack(part))
                    for name, part in zip(self._output_names, parts, strict=True)
                ]
            )
            for parts in zip(*splits, strict=True)
        ]


def _position(tensor_name: str) -> int:
    return int(tensor_name.rpartition("__")[2])


def _last_line(error: Exception) -> str:
    """TorchScript puts a traceback before the reason; only the reason is the client's."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__
