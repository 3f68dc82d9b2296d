"""A running server's own statistics, and the processor time that it takes."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from pathlib import Path

from reverse_image_search import contract

# Proxies are for other people's addresses, and the load generator uses none either.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def served_models(url: str) -> list[str]:
    """Names of the project's models that are ready at `url`; none where no Triton answers."""
    names = [model.name for model in (*contract.MODELS, contract.IMAGE_SEARCH)]
    return [name for name in names if answers(f"{url}/v2/models/{name}/ready")]


def answers(url: str) -> bool:
    """Whether `url` answers with status 200."""
    try:
        _open(url, timeout=10).close()
    except OSError:  # refused, or another status than 200
        return False
    return True


def triton_statistics(url: str) -> dict[str, dict]:
    """What Triton has counted so far, by model name; empty for other servers."""
    try:
        with _open(f"{url}/v2/models/stats", timeout=10) as response:
            return {model["name"]: model for model in json.load(response)["model_stats"]}
    except (OSError, ValueError):
        return {}


def statistics_between(before: dict[str, dict], after: dict[str, dict]) -> dict[str, dict]:
    """Mean batch size, and milliseconds of a request in the queue and in the model."""
    between = {}
    for name, new in after.items():
        old = before[name]

        def grown(*path: str, new: dict = new, old: dict = old) -> int:
            for key in path:
                new, old = new[key], old[key]
            return new - old

        requests = grown("inference_stats", "success", "count")
        executions = grown("execution_count")
        if requests and name != contract.IMAGE_SEARCH.name:
            between[name] = {
                "batch": grown("inference_count") / executions,
                "queue_ms": grown("inference_stats", "queue", "ns") / requests / 1e6,
                "compute_ms": grown("inference_stats", "compute_infer", "ns") / requests / 1e6,
            }
    return between


def server_cpu_seconds(port: int) -> float:
    """Processor time so far of the process that listens on `port` and of its descendants."""
    processes = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(") ")[2].split()
            processes[int(path.parent.name)] = (int(fields[1]), int(fields[11]) + int(fields[12]))
    listening = _listening_processes(port)
    tree = set(listening)
    while more := {pid for pid, (parent, _) in processes.items() if parent in tree} - tree:
        tree |= more
    ticks = sum(processes[pid][1] for pid in tree if pid in processes)
    return ticks / os.sysconf("SC_CLK_TCK")


def _listening_processes(port: int) -> set[int]:
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    pids = set()
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(path) in inodes:
                pids.add(int(path.parts[2]))
    return pids
