"""A peer: the same models behind FastAPI, served by uvicorn.

    python -m reverse_image_search.benchmark.fastapi_peer --output-dir . --port 8100

``POST /predict?width=28`` takes the raw float32 pixels of one image (3, height, width) and answers
with int64 ids followed by float32 scores.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from reverse_image_search.benchmark.in_process import load_models
from reverse_image_search.evaluation.command_line import make_parser

_PROCESSES = 2  # of one thread each; the machine that this was tuned on has two processors


def make_app() -> FastAPI:
    """The models of OUTPUT_DIR behind one endpoint, run in a thread beside the event loop."""
    encoder, similarity = load_models(Path(os.environ["OUTPUT_DIR"]))
    thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))

    def search(body: bytes, width: int) -> bytes:
        pixels = np.frombuffer(body, np.float32).reshape(1, 3, -1, width).copy()
        with torch.inference_mode():
            ids, scores = similarity(encoder(torch.from_numpy(pixels)))
        return ids.numpy().tobytes() + scores.numpy().tobytes()

    async def predict(request: Request) -> Response:
        body, width = await request.body(), int(request.query_params["width"])
        return Response(
            await asyncio.get_running_loop().run_in_executor(thread, search, body, width)
        )

    app = FastAPI()
    # Plain routes: raw bytes need no validation.
    app.add_route("/predict", predict, methods=["POST"])
    app.add_route("/health", lambda _request: Response())
    return app


if __name__ == "__main__":
    options = make_parser(make_app.__doc__, port=int).parse_args()
    os.environ["OUTPUT_DIR"] = str(options.output_dir)  # for the worker processes
    uvicorn.run(
        "reverse_image_search.benchmark.fastapi_peer:make_app", factory=True, port=options.port,
        workers=_PROCESSES, loop="uvloop", http="httptools", access_log=False, log_level="warning",
    )  # fmt: skip
