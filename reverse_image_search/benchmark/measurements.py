"""Single measurements, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from reverse_image_search.benchmark.server_statistics import (
    server_cpu_seconds,
    statistics_between,
    triton_statistics,
)
from reverse_image_search.layout import REPOSITORY_ROOT


class BenchmarkError(Exception):
    """The benchmark cannot run; the message says what to do."""


def measure_load(url: str, scenario: str, clients: int, output_dir: Path, seconds: float) -> dict:
    """One run of the load generator, with the server's own figures.

    Returns
    -------
    `generate_load`'s report, and server_cpus, generator_cpus, and Triton's statistics by model
    """
    port = int(url.rpartition(":")[2])
    cpu_before, statistics_before = server_cpu_seconds(port), triton_statistics(url)
    begin = time.perf_counter()
    report = run_module(
        "load_generator", "--url", url, "--scenario", scenario, "--clients", clients,
        "--output-dir", output_dir, "--seconds", seconds, "--warm-up", seconds / 2,
    )  # fmt: skip
    # The server's share includes the warm-up, so it is given per second of the whole run.
    report["server_cpus"] = (server_cpu_seconds(port) - cpu_before) / (time.perf_counter() - begin)
    report["generator_cpus"] = report["cpu_seconds"] / report["seconds"]
    report["triton"] = statistics_between(statistics_before, triton_statistics(url))
    return report


def run_module(name: str, *arguments: object) -> dict:
    """The JSON that a module of this folder prints."""
    command = [sys.executable, "-I", "-m", f"reverse_image_search.benchmark.{name}"]
    result = subprocess.run(
        [*command, *map(str, arguments)], cwd=REPOSITORY_ROOT, capture_output=True, text=True
    )
    if result.returncode != 0:
        raise BenchmarkError(f"{name} failed: {result.stderr.strip()}")
    return json.loads(result.stdout)


def describe_machine() -> str:
    """Processor, number of processors, date and load, for titles and tables."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, IndexError):
        info = Path("/proc/cpuinfo").read_text()
        model = info.split("model name")[1].split(":", 1)[1].split("\n", 1)[0].strip()
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    load = os.getloadavg()[1]
    return f"{model}, {os.cpu_count()} processors, {now}, load of the last 5 minutes {load:.1f}"
