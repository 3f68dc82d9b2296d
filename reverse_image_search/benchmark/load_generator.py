"""Clients that search without pause.

One thread drives all connections and sends requests that were made beforehand, so that the
generator takes little processor time from the server; it reports how much it took.
"""

import asyncio
import base64
import itertools
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from reverse_image_search import contract
from reverse_image_search.evaluation.originals import Originals, draw_originals
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import gallery_file

_PREPARED_QUERIES = 256  # different images in turn
_MOST_PHOTOS = 64  # of 2 MB each as a tensor
_HEADER_LENGTH = "Inference-Header-Content-Length"


class Scenario(NamedTuple):
    """The one or two requests of a query."""

    first: Callable[[np.ndarray], bytes]  # of one image (1, 3, height, width) float32, 0 to 1
    second: Callable[[bytes, bytes], bytes] | None = None  # of the first answer's head and body


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _infer(model: contract.ModelSpec, tensor: np.ndarray, binary: bool = True) -> bytes:
    (spec,) = model.inputs
    infer_input = InferInput(spec.name, tensor.shape, spec.datatype)
    infer_input.set_data_from_numpy(tensor, binary_data=binary)
    outputs = [InferRequestedOutput(output.name, binary_data=binary) for output in model.outputs]
    body, length = InferenceServerClient.generate_request_body([infer_input], outputs=outputs)
    headers = [f"{_HEADER_LENGTH}: {length}"] if binary else []
    return _post(f"/v2/models/{model.name}/infer", body, *headers)


def _pass_embedding_on(head: bytes, body: bytes) -> bytes:
    embedding = np.frombuffer(body[_integer(head, _HEADER_LENGTH) :], np.float32)
    return _infer(contract.VECTOR_SIMILARITY, embedding[None])


def _pass_json_on(_head: bytes, body: bytes) -> bytes:
    (output,) = json.loads(body)["outputs"]
    embedding = np.array(output["data"], np.float32)
    return _infer(contract.VECTOR_SIMILARITY, embedding[None], binary=False)


def _base64(pixels: np.ndarray) -> bytes:
    content = {"pixels": base64.b64encode(pixels.tobytes()).decode(), "width": pixels.shape[3]}
    return _post("/predict", json.dumps(content).encode(), "Content-Type: application/json")


def _raw(pixels: np.ndarray) -> bytes:
    return _post(f"/predict?width={pixels.shape[3]}", pixels.tobytes())


SCENARIOS = {
    "one_call": Scenario(partial(_infer, contract.IMAGE_SEARCH)),
    "two_calls": Scenario(partial(_infer, contract.IMAGE_ENCODER), _pass_embedding_on),
    "embedding": Scenario(partial(_infer, contract.IMAGE_ENCODER)),
    # As in the first version of this tutorial: pixels and embeddings as JSON numbers.
    "two_json_calls": Scenario(
        partial(_infer, contract.IMAGE_ENCODER, binary=False), _pass_json_on
    ),
    "base64_pixels": Scenario(_base64),
    "raw_pixels": Scenario(_raw),
}


def query_tensors(output_dir: Path, count: int) -> np.ndarray:
    """`count` images to search for, in the size of the first one: (n, 3, height, width) float32
    RGB, 0 to 1. They are a build's example queries, or images of its gallery; at most
    `_MOST_PHOTOS` of photos. Few images are repeated, so that there is a whole batch.
    """
    gallery = Gallery(gallery_file(output_dir))
    count = min(count, _MOST_PHOTOS) if gallery.metadata.is_photos else count
    if gallery.query_count:
        images = [query.pixels for query in gallery.queries(gallery.query_ids()[:count])]
    else:
        originals = Originals(gallery)
        images = [originals[row] for row in draw_originals(len(gallery), count)]
    size = Image.fromarray(images[0]).size
    pixels = [Image.fromarray(image).convert("RGB").resize(size) for image in images]
    tensors = [np.asarray(image).transpose(2, 0, 1) / np.float32(255) for image in pixels]
    return np.stack([tensors[i % len(tensors)] for i in range(count)])


def generate_load(
    url: str, scenario: str, clients: int, output_dir: Path, warm_up: float, seconds: float
) -> dict:
    """Search with a build's queries for `warm_up` + `seconds` seconds, and report on the latter.

    Returns
    -------
    queries_per_second, p50_ms, p95_ms, p99_ms, generator_cpus (processors that this process took)

    Raises
    ------
    OSError, EOFError : the server does not answer, not in time, or not with status 200
    """
    import uvloop  # of requirements-benchmark.txt

    server, (first, second) = urlsplit(url), SCENARIOS[scenario]
    images = query_tensors(output_dir, _PREPARED_QUERIES)
    requests = itertools.cycle([first(image[None]) for image in images])
    latencies: list[float] = []
    begin = time.perf_counter() + warm_up
    end = begin + seconds

    async def search_until_the_end() -> None:
        reader, writer = await asyncio.open_connection(server.hostname, server.port)
        while (start := time.perf_counter()) < end:
            writer.write(next(requests))
            answer = await _read_answer(reader)
            if second:
                writer.write(second(*answer))
                await _read_answer(reader)
            if begin < (now := time.perf_counter()) < end:
                latencies.append(now - start)
        writer.close()

    async def search_with_all_clients() -> float:  # seconds of processor time
        async with asyncio.timeout(warm_up + seconds + 30):
            searches = [asyncio.create_task(search_until_the_end()) for _ in range(clients)]
            await asyncio.sleep(warm_up)
            before = time.process_time()
            await asyncio.sleep(seconds)
            cpu_seconds = time.process_time() - before
            await asyncio.gather(*searches)
            return cpu_seconds

    cpu_seconds = uvloop.run(search_with_all_clients())
    if not latencies:
        raise TimeoutError(f"no answer within {seconds:g} s; measure longer, with --seconds")
    return {
        "queries_per_second": len(latencies) / seconds,
        **{f"p{p}_ms": 1e3 * np.percentile(latencies, p) for p in (50, 95, 99)},
        "generator_cpus": cpu_seconds / seconds,
    }


async def _read_answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    body = await reader.readexactly(_integer(head, "Content-Length"))
    if not head.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(f"the server answered {head[:60]!r}: {body[:300]!r}")
    return head, body


def _integer(head: bytes, field: str) -> int:
    return int(head.lower().partition(f"\r\n{field.lower()}:".encode())[2].partition(b"\r\n")[0])
