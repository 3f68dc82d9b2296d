"""Peers to compare Triton with: the same models behind FastAPI and LitServe, and a model
repository in the design of this tutorial's first version.

    python -m reverse_image_search.benchmark.peers --server fastapi --output-dir . --port 8100

``POST /predict`` takes the float32 pixels of one image (3, height, width) and its width, raw or
(LitServe reads JSON) in base64, and answers with int64 ids followed by float32 scores.
"""

import asyncio
import base64
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import litserve
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from torch import Tensor, nn
from torchvision.models import resnet18

from reverse_image_search import contract
from reverse_image_search.benchmark.in_process import load_models
from reverse_image_search.command_line import make_parser
from reverse_image_search.indexes.exact import ExactIndex
from reverse_image_search.layout import MODEL_FILENAME, config_file, version_folder
from reverse_image_search.serving.export import write_model_files
from reverse_image_search.serving.model_config import ServerSettings, model_config

PROCESSES = 2  # of one thread each; the machine that this was tuned on has two processors


def fastapi_app() -> FastAPI:
    """The models of OUTPUT_DIR, run in a thread beside the event loop."""
    encoder, similarity = load_models(Path(os.environ["OUTPUT_DIR"]))
    thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def search(body: bytes, width: int) -> bytes:
        with torch.inference_mode():
            return _to_bytes(*similarity(encoder(_to_pixels(body, width)[None])))

    async def predict(request: Request) -> Response:
        body, width = await request.body(), int(request.query_params["width"])
        loop = asyncio.get_running_loop()
        return Response(await loop.run_in_executor(thread, search, body, width))

    app = FastAPI()
    # Plain routes: raw bytes need no validation.
    app.add_route("/predict", predict, methods=["POST"])
    app.add_route("/health", lambda _request: Response(str(os.getpid())))
    return app


class LitServeSearch(litserve.LitAPI):
    """The models of OUTPUT_DIR, on batches of up to 32 that wait 2 ms for more."""

    def setup(self, device: str) -> None:
        """Load the models, once in each worker."""
        torch.set_num_threads(1)
        self._encoder, self._similarity = load_models(Path(os.environ["OUTPUT_DIR"]))

    def decode_request(self, request: dict) -> Tensor:
        """Pixels of one image."""
        return _to_pixels(base64.b64decode(request["pixels"]), request["width"])

    def predict(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Ids and scores of each image of a batch."""
        with torch.inference_mode():
            return list(zip(*self._similarity(self._encoder(x)), strict=True))

    def encode_response(self, output: tuple[Tensor, Tensor]) -> dict:
        """JSON of the answer."""
        return {"answer": base64.b64encode(_to_bytes(*output))}


def write_first_version(folder: Path) -> None:
    """ResNet-18, 704 images, no batching, no warm-up; random weights, which take the same time."""
    gallery_size, dim, top_k = 704, 512, 20
    encoder = resnet18()
    encoder.fc = nn.Identity()
    index = ExactIndex(torch.randn(gallery_size, dim), torch.arange(gallery_size), top_k)
    for model, module, input_ndim in zip(contract.MODELS, (encoder, index), (4, 2), strict=True):
        write_model_files({MODEL_FILENAME: module}, version_folder(folder, model.name), input_ndim)
        config = model_config(
            model, embedding_dim=dim, top_k=top_k, example_dims=None, parameters={},
            settings=ServerSettings(dynamic_batching=False),
        )  # fmt: skip
        config_file(folder, model.name).write_text(config)


def _to_pixels(data: bytes, width: int) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.float32).reshape(3, -1, width).copy())


def _to_bytes(ids: Tensor, scores: Tensor) -> bytes:
    return ids.numpy().tobytes() + scores.numpy().tobytes()


def main() -> None:
    """Serve a build's models until the process is ended."""
    parser = make_parser(main.__doc__, port=int)
    parser.add_argument("--server", choices=("fastapi", "litserve"), required=True)
    options = parser.parse_args()
    os.environ["OUTPUT_DIR"] = str(options.output_dir)  # for the worker processes
    common: dict[str, Any] = {"host": "127.0.0.1", "port": options.port, "log_level": "warning"}
    if options.server == "fastapi":
        app = "reverse_image_search.benchmark.peers:fastapi_app"
        common |= {"loop": "uvloop", "http": "httptools", "access_log": False}
        common["timeout_worker_healthcheck"] = 120  # seconds; workers that import are not dead
        uvicorn.run(app, factory=True, workers=PROCESSES, **common)
    else:
        api = LitServeSearch(max_batch_size=32, batch_timeout=0.002)
        server = litserve.LitServer(api, accelerator="cpu", workers_per_device=PROCESSES)
        server.run(generate_client_file=False, **common)


if __name__ == "__main__":
    main()
