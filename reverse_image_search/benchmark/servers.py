"""The measured servers: each runs on free ports until its context ends."""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from reverse_image_search.benchmark.load_generator import query_tensors
from reverse_image_search.benchmark.measurements import BenchmarkError, answer
from reverse_image_search.client import Client
from reverse_image_search.layout import ENSEMBLE_REPO, MODEL_REPO
from reverse_image_search.serving.ports import free_ports
from reverse_image_search.serving.supervisor import is_ready

_START_TIMEOUT = 120  # seconds


@contextlib.contextmanager
def own_server(output_dir: Path) -> Iterator[tuple[str, float]]:
    """A build's models on Triton: the address, and the first request over the median."""
    with local_server([output_dir / MODEL_REPO, output_dir / ENSEMBLE_REPO]) as url:
        client, latencies = Client(url), []
        client.server_metadata()  # opens the connection
        for image in query_tensors(output_dir, 201):
            start = time.perf_counter()
            client.search([image])
            latencies.append(time.perf_counter() - start)
        yield url, latencies[0] / statistics.median(latencies[1:])


def peer_servers(output_dir: Path) -> Iterator[tuple[str, str, AbstractContextManager[str]]]:
    """Name, scenario of the load generator, and server of each peer."""
    # With packages that only a comparison needs.
    from reverse_image_search.benchmark.peers import PROCESSES, write_first_version

    yield "FastAPI", "raw_pixels", _peer("fastapi", output_dir, PROCESSES)
    yield "LitServe", "base64_pixels", _peer("litserve", output_dir, 1)
    with tempfile.TemporaryDirectory() as folder:
        write_first_version(Path(folder))
        yield "the first version", "two_json_calls", local_server([Path(folder)])


@contextlib.contextmanager
def local_server(repositories: list[Path]) -> Iterator[str]:
    """The local runtime's Triton on any model repositories: its address."""
    port, grpc_port, metrics_port = free_ports(3)
    options = [f"--model-repository={folder}" for folder in repositories]
    options += [f"--http-port={port}", f"--grpc-port={grpc_port}", f"--metrics-port={metrics_port}"]
    with _running("serving.local_server", options, lambda: is_ready(port)):
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def _peer(name: str, output_dir: Path, health_answers: int) -> Iterator[str]:
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    options = [f"--server={name}", f"--output-dir={output_dir}", f"--port={port}"]
    seen = set()

    def is_up() -> bool:  # LitServe answers for all of its workers, each of FastAPI's for itself
        seen.add(answer(f"{url}/health"))
        return len(seen - {None}) >= health_answers

    with _running("benchmark.peers", options, is_up):
        yield url


@contextlib.contextmanager
def _running(module: str, options: list[str], is_up: Callable[[], bool]) -> Iterator[None]:
    """Run a module of ours; wait until it is up, and stop it with all of its processes."""
    command = [sys.executable, "-I", "-m", f"reverse_image_search.{module}", *options]
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, lambda number, _: sys.exit(128 + number))  # stops it as well
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + _START_TIMEOUT
            while not is_up():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise BenchmarkError(f"{module} did not start: {log.read()[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            for signal_number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, signal_number)
                    process.wait(30)
