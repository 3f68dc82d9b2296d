"""A peer: the same models behind FastAPI, served by uvicorn.

    python -m reverse_image_search.benchmark.fastapi_peer --model-repo model_repo --port 8100

``POST /predict`` takes the float32 pixels of one image as they are, and answers with int64 ids
followed by float32 scores.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response

from reverse_image_search.benchmark.in_process import load_models

_IMAGE_SHAPE = (3, 28, 28)
_PROCESSES = 2  # one for each processor of the machine that this was tuned on, of 1 thread each
_MODEL_REPO = "BENCHMARK_MODEL_REPO"  # an environment variable, for the worker processes


def make_app() -> FastAPI:
    """The models behind one endpoint, run in a thread beside the event loop."""
    torch.set_num_threads(1)
    encoder, similarity = load_models(Path(os.environ[_MODEL_REPO]))
    thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    app = FastAPI()

    def search(body: bytes) -> bytes:
        pixels = np.frombuffer(body, np.float32).reshape(1, *_IMAGE_SHAPE).copy()
        with torch.inference_mode():
            ids, scores = similarity(encoder(torch.from_numpy(pixels)))
        return ids.numpy().tobytes() + scores.numpy().tobytes()

    async def predict(request: Request) -> Response:
        body = await request.body()
        answer = await asyncio.get_running_loop().run_in_executor(thread, search, body)
        return Response(answer, media_type="application/octet-stream")

    # A plain route: there is nothing to validate in a body of bytes.
    app.add_route("/predict", predict, methods=["POST"])
    return app


def main() -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model-repo", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    os.environ[_MODEL_REPO] = options.model_repo
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
