"""The measured servers: each runs on free ports until its context ends."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from reverse_image_search.benchmark.measurements import BenchmarkError
from reverse_image_search.benchmark.query_tensors import query_tensors
from reverse_image_search.benchmark.server_statistics import answers
from reverse_image_search.client import Client
from reverse_image_search.layout import REPOSITORY_ROOT
from reverse_image_search.serving.ports import free_ports
from reverse_image_search.serving.supervisor import is_ready

_BIN = REPOSITORY_ROOT / "reverse_image_search" / "bin"
_START_TIMEOUT = 120  # seconds


@contextlib.contextmanager
def own_server(output_dir: Path) -> Iterator[tuple[str, float]]:
    """This project's server: its address, and its first request over the median."""
    http_port, grpc_port, metrics_port = free_ports(3)
    environment = os.environ | {
        "RUNTIME": "local",
        "OUTPUT_DIR": str(output_dir),
        "TRITON_HTTP_PORT": str(http_port),
        "TRITON_GRPC_PORT": str(grpc_port),
        "TRITON_METRICS_PORT": str(metrics_port),
    }
    script = _BIN / "start_inference_server_cpu.sh"
    started = time.perf_counter()
    result = subprocess.run(
        [script, "--detach", "--ensemble"], env=environment, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise BenchmarkError(f"the server did not start: {result.stdout}{result.stderr}")
    print(f"server READY after {time.perf_counter() - started:.1f} s")
    try:
        url = f"http://127.0.0.1:{http_port}"
        yield url, _first_over_median(url, output_dir)
    finally:
        subprocess.run([script, "--stop"], env=environment, capture_output=True)


def _first_over_median(url: str, output_dir: Path) -> float:
    client, latencies = Client(url), []
    client.server_metadata()  # opens the connection
    for image in query_tensors(output_dir, 201):
        start = time.perf_counter()
        client.search([image])
        latencies.append(time.perf_counter() - start)
    return latencies[0] / statistics.median(latencies[1:])


def peers(output_dir: Path) -> Iterator[tuple[str, str, contextlib.AbstractContextManager[str]]]:
    """Name, scenario of the load generator, and server of each peer."""
    yield "FastAPI", "raw_pixels", _peer("fastapi_peer", output_dir)
    yield "LitServe", "base64_pixels", _peer("litserve_peer", output_dir)
    yield "the first version", "two_json_calls", _first_version()


@contextlib.contextmanager
def _peer(module: str, output_dir: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [
        sys.executable, "-I", "-m", f"reverse_image_search.benchmark.{module}",
        "--output-dir", output_dir, "--port", str(port),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY_ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            # LitServe listens before its workers can answer.
            _wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            for signal_number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, signal_number)
                    process.wait(10)
            process.wait()


@contextlib.contextmanager
def _first_version() -> Iterator[str]:
    from reverse_image_search.benchmark.first_version import write_first_version

    with tempfile.TemporaryDirectory() as folder:
        write_first_version(Path(folder))
        with local_server([Path(folder)]) as url:
            yield url


@contextlib.contextmanager
def local_server(repositories: list[Path]) -> Iterator[str]:
    """The local runtime's Triton on any model repositories: its address."""
    ports = free_ports(3)
    options = zip(("--http-port", "--grpc-port", "--metrics-port"), map(str, ports), strict=True)
    command = [
        sys.executable, "-I", "-m", "reverse_image_search.serving.local_server",
        *(word for folder in repositories for word in ("--model-repository", folder)),
        *(word for option in options for word in option),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until(lambda: is_ready(ports[0]), process, log)
            yield f"http://127.0.0.1:{ports[0]}"
        finally:
            process.terminate()
            process.wait(30)


def _wait_until(ready: Callable[[], bool], process: subprocess.Popen, log: IO[str]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if ready():
            return
        time.sleep(0.2)
    log.seek(0)
    raise BenchmarkError(f"{process.args} did not start: {log.read()[-2000:]}")
