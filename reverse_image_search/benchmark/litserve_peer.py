"""A peer: the same models behind LitServe, which batches requests for the workers behind it.

    python -m reverse_image_search.benchmark.litserve_peer --output-dir . --port 8100

LitServe reads JSON, so the float32 pixels travel as base64 beside the image's width, and so does
the answer: int64 ids followed by float32 scores.
"""

from __future__ import annotations

import base64
from pathlib import Path

import litserve
import numpy as np
import torch
from torch import Tensor

from reverse_image_search.benchmark.in_process import load_models
from reverse_image_search.evaluation.command_line import make_parser

_PROCESSES = 2  # of one thread each; the machine that this was tuned on has two processors


class Search(litserve.LitAPI):
    """Both models, one after the other, on batches of up to 32 that wait 2 ms for more."""

    def __init__(self, output_dir: Path) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.002)
        self._output_dir = output_dir

    def setup(self, device: str) -> None:
        """Load the models, once in each worker."""
        torch.set_num_threads(1)
        self._encoder, self._similarity = load_models(self._output_dir)

    def decode_request(self, request: dict) -> Tensor:
        """Pixels of one image, (3, height, width)."""
        pixels = np.frombuffer(base64.b64decode(request["pixels"]), np.float32)
        return torch.from_numpy(pixels.reshape(3, -1, request["width"]).copy())

    def predict(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Ids and scores of each image of a batch."""
        with torch.inference_mode():
            return list(zip(*self._similarity(self._encoder(x)), strict=True))

    def encode_response(self, output: tuple[Tensor, Tensor]) -> dict:
        """JSON of the answer."""
        ids, scores = output
        return {"answer": base64.b64encode(ids.numpy().tobytes() + scores.numpy().tobytes())}


if __name__ == "__main__":
    options = make_parser(Search.__doc__, port=int).parse_args()
    api = Search(options.output_dir)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=_PROCESSES)
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)
