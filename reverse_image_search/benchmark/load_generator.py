"""Load on a server from a process of its own: N clients, each asks as soon as it is answered.

One thread drives all connections by hand and sends requests that were made beforehand, so that the
generator takes little of the processors that the server needs; it reports what it took.

    python -m reverse_image_search.benchmark.load_generator --scenario two_calls --clients 32 ...
"""

from __future__ import annotations

import argparse
import base64
import json
import resource
import selectors
import socket
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from reverse_image_search import contract
from reverse_image_search.client.tensors import to_tensor

_PREPARED_QUERIES = 256  # different images in turn
_HEADER_LENGTH = b"\r\ninference-header-content-length:"


class Scenario(ABC):
    """The requests of one query, one after the other."""

    def __init__(self, host: str, images: np.ndarray) -> None:
        """`images`: (n, height, width) uint8, grey."""
        self._host = host
        pixels = np.stack([to_tensor(image) for image in images])
        self.first_requests = [self._first_request(image[None]) for image in pixels]

    @abstractmethod
    def _first_request(self, pixels: np.ndarray) -> bytes:
        """Request for one image (1, 3, height, width) float32, RGB, 0 to 1."""

    def next_request(self, _step: int, _head: bytes, _body: bytes) -> bytes | None:
        """What follows the answer to request number `step`; None when it was the last."""
        return None

    def _post(self, path: str, body: bytes, headers: str = "") -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\n{headers}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def _infer(self, model: contract.ModelSpec, tensor: np.ndarray) -> bytes:
        (spec,) = model.inputs
        infer_input = InferInput(spec.name, tensor.shape, spec.datatype)
        infer_input.set_data_from_numpy(tensor, binary_data=True)
        outputs = [InferRequestedOutput(output.name, binary_data=True) for output in model.outputs]
        body, header_length = InferenceServerClient.generate_request_body(
            [infer_input], outputs=outputs
        )
        headers = f"Inference-Header-Content-Length: {header_length}\r\n"
        return self._post(f"/v2/models/{model.name}/infer", body, headers)


class OneCall(Scenario):
    """The ensemble `image_search`."""

    def _first_request(self, pixels: np.ndarray) -> bytes:
        return self._infer(contract.IMAGE_SEARCH, pixels)


class TwoCalls(Scenario):
    """`image_encoder`, then `vector_similarity` with the embedding that came back."""

    def _first_request(self, pixels: np.ndarray) -> bytes:
        return self._infer(contract.IMAGE_ENCODER, pixels)

    def next_request(self, step: int, head: bytes, body: bytes) -> bytes | None:
        if step == 1:
            return None
        embedding = body[int(_field(head, _HEADER_LENGTH)) :]
        return self._second_head(len(embedding)) + embedding

    def _second_head(self, size: int) -> bytes:
        """The second request without its embedding, which differs in nothing else."""
        if not hasattr(self, "_head"):
            example = np.zeros((1, size // 4), np.float32)
            self._head = self._infer(contract.VECTOR_SIMILARITY, example)[:-size]
        return self._head


class TwoJsonCalls(Scenario):
    """As the tutorial's first version asked: pixels and embeddings as JSON numbers."""

    def _first_request(self, pixels: np.ndarray) -> bytes:
        return self._infer_json(contract.IMAGE_ENCODER, pixels.shape, pixels.ravel().tolist())

    def next_request(self, step: int, _head: bytes, body: bytes) -> bytes | None:
        if step == 1:
            return None
        (output,) = json.loads(body)["outputs"]
        return self._infer_json(contract.VECTOR_SIMILARITY, output["shape"], output["data"])

    def _infer_json(self, model: contract.ModelSpec, shape: tuple, data: list[float]) -> bytes:
        (spec,) = model.inputs
        request_input = {
            "name": spec.name, "shape": list(shape), "datatype": spec.datatype, "data": data,
        }  # fmt: skip
        body = json.dumps({"inputs": [request_input]}).encode()
        return self._post(f"/v2/models/{model.name}/infer", body)


class Base64Pixels(Scenario):
    """A peer that reads JSON: float32 pixels as base64."""

    def _first_request(self, pixels: np.ndarray) -> bytes:
        body = json.dumps({"pixels": base64.b64encode(pixels.tobytes()).decode()}).encode()
        return self._post("/predict", body, "Content-Type: application/json\r\n")


class RawPixels(Scenario):
    """A peer that reads bytes: float32 pixels."""

    def _first_request(self, pixels: np.ndarray) -> bytes:
        headers = "Content-Type: application/octet-stream\r\n"
        return self._post("/predict", pixels.tobytes(), headers)


SCENARIOS = {
    "one_call": OneCall,
    "two_calls": TwoCalls,
    "two_json_calls": TwoJsonCalls,
    "base64_pixels": Base64Pixels,
    "raw_pixels": RawPixels,
}


class _Connection:
    """One client: sends the next request when the answer to the last one is complete."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.step = 0
        self.start = 0.0
        self._received = bytearray()

    def ask(self, request: bytes) -> None:
        self.socket.sendall(request)

    def answer(self) -> tuple[bytes, bytes] | None:
        """Head and body once both are complete."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionError("the server closed the connection")
        self._received += part
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return None
        head = bytes(self._received[:end]) + b"\r\n"
        size = int(_field(head, b"\r\ncontent-length:"))
        if len(self._received) < end + 4 + size:
            return None
        body = bytes(self._received[end + 4 :])
        self._received.clear()
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(
                f"the server answered {head.splitlines()[0].decode()}: "
                f"{body[:300].decode(errors='replace')}"
            )
        return head, body


def _field(head: bytes, name: bytes) -> bytes:
    start = head.lower().index(name) + len(name)
    return head[start : head.index(b"\r\n", start)]


def generate_load(
    scenario: Scenario, address: tuple[str, int], clients: int, warm_up: float, seconds: float
) -> dict:
    """Ask for `warm_up` + `seconds` seconds and report on the latter.

    Returns
    -------
    queries, queries_per_second, p50_ms, p95_ms, p99_ms, cpu_seconds (of this process)
    """
    requests = scenario.first_requests
    latencies: list[float] = []
    selector = selectors.DefaultSelector()
    asked = 0
    for _ in range(clients):
        connection = _Connection(address)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    begin = time.perf_counter() + warm_up
    end = begin + seconds
    for key in list(selector.get_map().values()):
        key.data.start = time.perf_counter()
        key.data.ask(requests[asked % len(requests)])
        asked += 1
    cpu_before = None
    now = time.perf_counter()
    while now < end:
        if cpu_before is None and now >= begin:
            cpu_before, begin = _cpu_seconds(), now
        events = selector.select(timeout=30)
        if not events:
            raise ConnectionError("the server did not answer within 30 s")
        for key, _ in events:
            connection = key.data
            answer = connection.answer()
            now = time.perf_counter()
            if answer is None:
                continue
            following = scenario.next_request(connection.step, *answer)
            if following is not None:
                connection.step += 1
                connection.ask(following)
                continue
            if cpu_before is not None:
                latencies.append(now - connection.start)
            connection.step, connection.start = 0, time.perf_counter()
            connection.ask(requests[asked % len(requests)])
            asked += 1
    cpu_seconds = _cpu_seconds() - (cpu_before or 0.0)
    for key in list(selector.get_map().values()):
        key.data.socket.close()
    percentiles = np.percentile(np.array(latencies) * 1e3, [50, 95, 99]).tolist()
    return {
        "clients": clients,
        "queries": len(latencies),
        "queries_per_second": len(latencies) / (now - begin),
        **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
        "cpu_seconds": cpu_seconds,
        "seconds": now - begin,
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Print the report of one run as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--scenario", choices=SCENARIOS, required=True)
    parser.add_argument("--images", type=Path, required=True, help=".npy, (n, height, width) uint8")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    url = urlsplit(options.url)
    images = np.load(options.images, mmap_mode="r")[:_PREPARED_QUERIES]
    scenario = SCENARIOS[options.scenario](url.netloc, images)
    try:
        report = generate_load(
            scenario, (url.hostname, url.port), options.clients, options.warm_up, options.seconds
        )
    except OSError as error:
        print(f"{options.scenario} at {options.url}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
