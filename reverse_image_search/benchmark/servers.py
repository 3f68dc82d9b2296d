"""The servers that are measured: each is started on free ports, and ends with its context."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from reverse_image_search.benchmark.server_figures import BenchmarkError, served_models
from reverse_image_search.layout import REPOSITORY_ROOT
from reverse_image_search.serving.ports import free_ports

_BIN = REPOSITORY_ROOT / "reverse_image_search" / "bin"
_START_TIMEOUT = 120  # seconds


@contextlib.contextmanager
def own_server(output_dir: Path) -> Iterator[tuple[str, float]]:
    """A server of our own on free ports: its address, and its first request over the median."""
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
        yield url, _first_over_median(url, output_dir / "gallery" / "query_images.npy")
    finally:
        subprocess.run([script, "--stop"], env=environment, capture_output=True)


def _first_over_median(url: str, images: Path) -> float:
    import numpy as np

    from reverse_image_search.client import Client

    client, latencies = Client(url), []
    client.build_ids()  # opens the connection
    for image in np.load(images, mmap_mode="r")[:201]:
        start = time.perf_counter()
        client.search([image])
        latencies.append(time.perf_counter() - start)
    return latencies[0] / statistics.median(latencies[1:])


def peers(model_repo: Path) -> Iterator[tuple[str, str, contextlib.AbstractContextManager[str]]]:
    """Name, scenario of the load generator, and server of each peer."""
    yield "FastAPI", "raw_pixels", _peer("fastapi_peer", model_repo)
    yield "LitServe", "base64_pixels", _peer("litserve_peer", model_repo)
    yield "the first version", "two_json_calls", _first_version()


@contextlib.contextmanager
def _peer(module: str, model_repo: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [
        sys.executable, "-I", "-m", f"reverse_image_search.benchmark.{module}",
        "--model-repo", model_repo, "--port", str(port),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY_ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(port, process, log)
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
    """Triton on any model repositories, by the local runtime: its address."""
    ports = free_ports(3)
    options = zip(("--http-port", "--grpc-port", "--metrics-port"), map(str, ports), strict=True)
    command = [
        sys.executable, "-I", "-m", "reverse_image_search.serving.local_server",
        *(word for folder in repositories for word in ("--model-repository", folder)),
        *(word for option in options for word in option),
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{ports[0]}"
        try:
            _wait_for(ports[0], process, log)
            deadline = time.monotonic() + _START_TIMEOUT
            while not served_models(url, missing_ok=True) and time.monotonic() < deadline:
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(port: int, process: subprocess.Popen, log) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            # LitServe listens before its workers can answer.
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=30)
            return
        time.sleep(0.2)
    log.seek(0)
    raise BenchmarkError(f"{process.args} did not start: {log.read()[-2000:]}")
