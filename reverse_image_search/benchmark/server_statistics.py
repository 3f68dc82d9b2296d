"""A running server's own statistics, and the processor time that it takes."""

from __future__ import annotations

import contextlib
import json
import urllib.request

import psutil

from reverse_image_search import contract

# A loopback address must not be asked through a proxy.
_open = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def served_models(url: str) -> list[str]:
    """Names of the project's models that are ready at `url`; none where no Triton answers."""
    names = [model.name for model in (*contract.MODELS, contract.IMAGE_SEARCH)]
    return [name for name in names if answers(f"{url}/v2/models/{name}/ready")]


def answers(url: str) -> bool:
    """Whether `url` answers with status 200."""
    try:
        _open(url, timeout=10).close()
    except OSError:  # refused, or another status
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
        stats, old_stats = new["inference_stats"], old["inference_stats"]
        requests = stats["success"]["count"] - old_stats["success"]["count"]
        if not requests or name == contract.IMAGE_SEARCH.name:
            continue
        queue, compute = (
            (stats[kind]["ns"] - old_stats[kind]["ns"]) / requests / 1e6
            for kind in ("queue", "compute_infer")
        )
        batches = new["execution_count"] - old["execution_count"]
        between[name] = {
            "batch": (new["inference_count"] - old["inference_count"]) / batches,
            "queue_ms": queue,
            "compute_ms": compute,
        }
    return between


def server_processes(port: int) -> list[psutil.Process]:
    """The processes that listen on `port`, and their descendants."""
    connections = psutil.net_connections("tcp")
    listening = [each for each in connections if each.status == psutil.CONN_LISTEN]
    pids = {each.pid for each in listening if each.laddr and each.laddr.port == port}
    servers = [psutil.Process(pid) for pid in pids if pid]
    return list({*servers, *(c for each in servers for c in each.children(recursive=True))})


def server_cpu_seconds(port: int) -> float:
    """Processor time so far of `server_processes`."""
    seconds = 0.0
    for process in server_processes(port):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds += times.user + times.system
    return seconds
