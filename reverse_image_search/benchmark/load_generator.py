"""Clients that search without pause, in a process of their own.

One thread drives all connections and sends requests that were made beforehand, so that the
generator takes little processor time from the server; it reports how much it took.

    python -m reverse_image_search.benchmark.load_generator --scenario two_calls --clients 32 ...
"""

from __future__ import annotations

import argparse
import base64
import json
import selectors
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from reverse_image_search import contract
from reverse_image_search.benchmark.query_tensors import query_tensors

_PREPARED_QUERIES = 256  # different images in turn
_HEADER_LENGTH = "Inference-Header-Content-Length"


class Scenario(NamedTuple):
    """The one or two requests of a query.

    Attributes
    ----------
    first : request for one image (1, 3, height, width) float32, RGB, 0 to 1
    second : request after the head and the body of the first answer
    """

    first: Callable[[np.ndarray], bytes]
    second: Callable[[bytes, bytes], bytes] | None = None


def _post(path: str, body: bytes, *headers: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _infer(model: contract.ModelSpec, tensor: np.ndarray) -> bytes:
    (spec,) = model.inputs
    infer_input = InferInput(spec.name, tensor.shape, spec.datatype)
    infer_input.set_data_from_numpy(tensor, binary_data=True)
    outputs = [InferRequestedOutput(output.name, binary_data=True) for output in model.outputs]
    body, length = InferenceServerClient.generate_request_body([infer_input], outputs=outputs)
    return _post(f"/v2/models/{model.name}/infer", body, f"{_HEADER_LENGTH}: {length}")


def _infer_json(model: contract.ModelSpec, shape: tuple[int, ...], data: list[float]) -> bytes:
    (spec,) = model.inputs
    tensor = {"name": spec.name, "shape": shape, "datatype": spec.datatype, "data": data}
    return _post(f"/v2/models/{model.name}/infer", json.dumps({"inputs": [tensor]}).encode())


def _pass_embedding_on(head: bytes, body: bytes) -> bytes:
    embedding = np.frombuffer(body[int(_field(head, _HEADER_LENGTH)) :], np.float32)
    return _infer(contract.VECTOR_SIMILARITY, embedding[None])


def _pass_json_on(_head: bytes, body: bytes) -> bytes:
    (output,) = json.loads(body)["outputs"]
    return _infer_json(contract.VECTOR_SIMILARITY, output["shape"], output["data"])


def _base64(pixels: np.ndarray) -> bytes:
    content = {"pixels": base64.b64encode(pixels.tobytes()).decode(), "width": pixels.shape[3]}
    return _post("/predict", json.dumps(content).encode(), "Content-Type: application/json")


SCENARIOS = {
    "one_call": Scenario(lambda pixels: _infer(contract.IMAGE_SEARCH, pixels)),
    "two_calls": Scenario(
        lambda pixels: _infer(contract.IMAGE_ENCODER, pixels), _pass_embedding_on
    ),
    # As in the first version of this tutorial: pixels and embeddings as JSON numbers.
    "two_json_calls": Scenario(
        lambda pixels: _infer_json(contract.IMAGE_ENCODER, pixels.shape, pixels.ravel().tolist()),
        _pass_json_on,
    ),
    "base64_pixels": Scenario(_base64),
    "raw_pixels": Scenario(
        lambda pixels: _post(f"/predict?width={pixels.shape[3]}", pixels.tobytes())
    ),
}


class _Client:
    """One connection, which searches again when its last search is complete."""

    def __init__(self, address: tuple[str, int], scenario: Scenario) -> None:
        self.socket = socket.create_connection(address, timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._second = scenario.second
        self._received = bytearray()

    def search(self, request: bytes) -> None:
        self._is_second, self._start = False, time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> float | None:
        """Seconds that the search took, once its answer is complete."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionError("the server closed the connection")
        self._received += part
        head, separator, body = bytes(self._received).partition(b"\r\n\r\n")
        if not separator or len(body) < int(_field(head, "Content-Length")):
            return None
        self._received.clear()
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"the server answered {head[:60]!r}: {body[:300]!r}")
        if self._second and not self._is_second:
            self._is_second = True
            self.socket.sendall(self._second(head, body))
            return None
        return time.perf_counter() - self._start


def _field(head: bytes, name: str) -> bytes:
    _, _, rest = head.lower().partition(f"\r\n{name.lower()}:".encode())
    return rest.partition(b"\r\n")[0]


def generate_load(
    scenario: Scenario,
    images: np.ndarray,
    address: tuple[str, int],
    clients: int,
    warm_up: float,
    seconds: float,
) -> dict:
    """Search for `warm_up` + `seconds` seconds and report on the latter.

    Parameters
    ----------
    images : (n, 3, height, width) float32 RGB, 0 to 1, searched with in turn

    Returns
    -------
    queries, queries_per_second, p50_ms, p95_ms, p99_ms, seconds, cpu_seconds (of this process)
    """
    requests = [scenario.first(image[None]) for image in images]
    selector = selectors.DefaultSelector()
    for number in range(clients):
        client = _Client(address, scenario)
        selector.register(client.socket, selectors.EVENT_READ, client)
        client.search(requests[number % len(requests)])
    latencies: list[float] = []
    started = clients
    now = time.perf_counter()
    begin, end, cpu_before = now + warm_up, now + warm_up + seconds, 0.0
    while now < end:
        events = selector.select(timeout=30)
        if not events:
            raise ConnectionError("the server did not answer within 30 s")
        for key, _ in events:
            latency = key.data.receive()
            if latency is None:
                continue
            if cpu_before:
                latencies.append(latency)
            key.data.search(requests[started % len(requests)])
            started += 1
        now = time.perf_counter()
        if not cpu_before and now >= begin:
            cpu_before, begin = time.process_time(), now
    for key in list(selector.get_map().values()):
        key.data.socket.close()
    percentiles = np.percentile(np.array(latencies) * 1e3, [50, 95, 99]).tolist()
    return {
        "clients": clients,
        "queries": len(latencies),
        "queries_per_second": len(latencies) / (now - begin),
        **dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True)),
        "cpu_seconds": time.process_time() - cpu_before,
        "seconds": now - begin,
    }


def main() -> int:
    """Print the report of one run as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--scenario", choices=SCENARIOS, required=True)
    parser.add_argument("--output-dir", type=Path, required=True, help="of a build")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--warm-up", type=float, default=1.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    url = urlsplit(options.url)
    images = query_tensors(options.output_dir, _PREPARED_QUERIES)
    try:
        report = generate_load(
            SCENARIOS[options.scenario],
            images,
            (url.hostname or "127.0.0.1", url.port or 80),
            options.clients,
            options.warm_up,
            options.seconds,
        )
    except OSError as error:
        print(f"{options.scenario} at {options.url}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
