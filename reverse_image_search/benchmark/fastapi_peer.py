"""A peer: the same models behind FastAPI, served by uvicorn.

    python -m reverse_image_search.benchmark.fastapi_peer --output-dir . --port 8100

``POST /predict`` takes the raw float32 pixels of one image (3, height, width) and answers with
int64 ids followed by float32 scores; its query parameter ``width`` is the image's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from reverse_image_search.benchmark.in_process import load_models

_PROCESSES = 2  # of one thread each; the machine that this was tuned on has two processors
_OUTPUT_DIR = "BENCHMARK_OUTPUT_DIR"  # an environment variable, for the worker processes


def make_app() -> FastAPI:
    """The models behind one endpoint, run in a thread beside the event loop."""
    encoder, similarity = load_models(Path(os.environ[_OUTPUT_DIR]))
    thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    app = FastAPI()

    def search(body: bytes, width: int) -> bytes:
        pixels = np.frombuffer(body, np.float32).reshape(1, 3, -1, width).copy()
        with torch.inference_mode():
            ids, scores = similarity(encoder(torch.from_numpy(pixels)))
        return ids.numpy().tobytes() + scores.numpy().tobytes()

    async def predict(request: Request) -> Response:
        body, width = await request.body(), int(request.query_params["width"])
        answer = await asyncio.get_running_loop().run_in_executor(thread, search, body, width)
        return Response(answer, media_type="application/octet-stream")

    # A plain route: raw bytes need no validation.
    app.add_route("/predict", predict, methods=["POST"])
    app.add_route("/health", lambda _request: Response())
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=make_app.__doc__)
    parser.add_argument("--output-dir", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    os.environ[_OUTPUT_DIR] = options.output_dir
    uvicorn.run(
        "reverse_image_search.benchmark.fastapi_peer:make_app",
        factory=True,
        host="127.0.0.1",
        port=options.port,
        workers=_PROCESSES,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
