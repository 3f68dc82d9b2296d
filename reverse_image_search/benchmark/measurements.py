"""Single measurements, each in a process of its own, and the server's own figures."""

import contextlib
import json
import multiprocessing
import os
import platform
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil

from reverse_image_search import contract
from reverse_image_search.benchmark.load_generator import generate_load

# A loopback address must not be asked through a proxy.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open

Result = TypeVar("Result")


class BenchmarkError(Exception):
    """The benchmark cannot run; the message says what to do."""


def measure_load(url: str, scenario: str, clients: int, output_dir: Path, seconds: float) -> dict:
    """`generate_load`'s report, with server_cpus, and Triton's own statistics by model."""
    port = int(url.rpartition(":")[2])
    cpu_before, counts_before = _cpu_seconds(port), _triton_counts(url)
    begin, load = time.perf_counter(), (url, scenario, clients, output_dir, seconds / 2, seconds)
    try:
        report = in_own_process(generate_load, *load)
    except (OSError, EOFError) as error:
        raise BenchmarkError(f"{scenario} at {url}: {error!r}") from error
    # The server's share includes the warm-up, so it is given per second of the whole run.
    report["server_cpus"] = (_cpu_seconds(port) - cpu_before) / (time.perf_counter() - begin)
    report["triton"] = {}
    for name, after in _triton_counts(url).items():
        images, batches, requests, queued, computed = after - counts_before[name]
        if batches and name != contract.IMAGE_SEARCH.name:
            report["triton"][name] = {
                "batch": images / batches,
                "queue_ms": queued / requests / 1e6,
                "compute_ms": computed / requests / 1e6,
            }
    return report


def in_own_process(function: Callable[..., Result], *arguments: object) -> Result:
    """Result of a call in a process of its own, with its own threads and memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(function, *arguments).result()


def answer(url: str) -> bytes | None:
    """What the server answers; None where it does not, or with another status than 200."""
    with contextlib.suppress(OSError), _open(url, timeout=10) as response:
        return response.read()
    return None


def server_processes(port: int) -> list[psutil.Process]:
    """The processes that listen on `port`, together or alone, and their descendants."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # ended meanwhile, or another user's
            connections = process.net_connections("tcp")
            if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
                found |= {process, *process.children(recursive=True)}
    return list(found)


def describe_machine() -> str:
    """Processor, number of processors, date and load, for titles and tables."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        info = Path("/proc/cpuinfo").read_text()
        model = info.split("model name")[1].splitlines()[0].strip("\t :")
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    load = os.getloadavg()[1]
    return f"{model}, {os.cpu_count()} processors, {now}, load of the last 5 minutes {load:.1f}"


def _cpu_seconds(port: int) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in server_processes(port))


def _triton_counts(url: str) -> dict[str, np.ndarray]:
    """By model: images, batches, requests, and nanoseconds queued and computed; {} for others."""
    statistics = json.loads(answer(f"{url}/v2/models/stats") or '{"model_stats": []}')
    counts = {}
    for model in statistics["model_stats"]:
        of = model["inference_stats"]
        times = of["success"]["count"], of["queue"]["ns"], of["compute_infer"]["ns"]
        figures = model["inference_count"], model["execution_count"], *times
        counts[model["name"]] = np.array(figures)
    return counts
