"""Search without pause for minutes or hours, and tell what grew, slowed down or went wrong.

    python -m reverse_image_search.benchmark.soak --minutes 30 --clients 32

Run it from the repository root, beside a server of the local runtime. Each client asks for
pictures of the gallery, which must find themselves, as soon as it is answered. Ends with exit code
1 when there was an error or a wrong answer, when a process's memory is not flat, or when the
slowest answers are slower at the end than at the start.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from reverse_image_search.client import Client, TritonError
from reverse_image_search.gallery import Gallery, open_gallery
from reverse_image_search.layout import REPOSITORY_ROOT

_SAMPLE_INTERVAL = 1.0  # seconds
# What comes before is not judged: caches fill, and the allocator finds its size.
_WARM_UP = 1 / 3  # of the run, for memory
_WINDOW = 1 / 5  # of the run: its first and its last part are compared for latency
# Printed, so that a slow minute can be told from a server that gets slower.
_TENTHS = [(tenth / 10, (tenth + 1) / 10) for tenth in range(10)]
_FLAT = 16.0  # MB that a process may grow by over the judged part of the run


@dataclass
class Soak:
    """Clients that search, and what they met."""

    client: Client
    gallery: Gallery
    seconds: float
    started: float = field(default_factory=time.monotonic)
    # One of (2 * answers,) for each client: when, latency, when, latency, ... in seconds.
    timings: list[array] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def search_until_the_end(self, seed: int) -> None:
        """One client; ends when the time is up."""
        rng = random.Random(seed)
        timings = array("f")  # 8 bytes an answer: this process's memory is watched as well
        self.timings.append(timings)
        while (begin := time.monotonic() - self.started) < self.seconds:
            query_id = rng.randrange(len(self.gallery))
            image = self.gallery.images[query_id]
            try:
                neighbors = self.client.search([image])
            except TritonError as error:
                self.errors.append(str(error))
                continue
            now = time.monotonic() - self.started
            timings.extend((now, now - begin))
            # Not by its id: the dataset holds some pictures twice.
            found = self.gallery.images[neighbors.ids[0, 0]]
            if not np.array_equal(found, image) or abs(neighbors.scores[0, 0] - 1) > 1e-4:
                self.wrong.append(f"gallery image {query_id} finds {neighbors.ids[0, :3]}")

    @property
    def answers(self) -> np.ndarray:
        """(n, 2) seconds: when, since the start, and after how long."""
        return np.concatenate([np.asarray(part) for part in self.timings]).reshape(-1, 2)

    def p99(self, begin: float, end: float) -> float:
        """99th percentile of the latency, in milliseconds, of answers in a part of the run.

        Parameters
        ----------
        begin, end : 0 is the start of the run, 1 its end
        """
        part = self._latencies(begin, end)
        return 1e3 * float(np.percentile(part, 99)) if len(part) else float("nan")

    def rate(self, begin: float, end: float) -> float:
        """Answers a second in a part of the run, given as for `p99`."""
        return len(self._latencies(begin, end)) / ((end - begin) * self.seconds)

    def _latencies(self, begin: float, end: float) -> np.ndarray:
        when, latency = self.answers.T
        return latency[(when >= begin * self.seconds) & (when < end * self.seconds)]


def main() -> int:
    """Run, print the report, and return the exit code."""
    options = _parse()
    port = urlsplit(options.url).port or 80
    processes = _processes(port)
    if not processes:
        print(
            f"No tritonserver of this machine serves port {port}. Start it with "
            "RUNTIME=local reverse_image_search/bin/start_inference_server_cpu.sh",
            file=sys.stderr,
        )
        return 1
    gallery = open_gallery(options.gallery)
    soak = Soak(Client(options.url), gallery, 60 * options.minutes)
    threads = [
        threading.Thread(target=soak.search_until_the_end, args=(seed,), daemon=True)
        for seed in range(options.clients)
    ]
    for thread in threads:
        thread.start()
    memory = _watch_memory(processes, soak)
    for thread in threads:
        thread.join()
    return _report(soak, memory, _processes(port) == processes, options.p99_tolerance)


def _processes(http_port: int) -> dict[str, int]:
    """Process ids by role: the server, one process for each model, and this one."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        pid = int(path.parent.name)
        if f"--http-port={http_port}" in command:
            found["tritonserver"] = pid
        elif command[0].endswith("triton_python_backend_stub") and any(
            f"_{http_port}_" in argument for argument in command
        ):
            found[Path(command[1]).parent.parent.name] = pid
    return {**dict(sorted(found.items())), "clients": os.getpid()} if found else {}


def _watch_memory(processes: dict[str, int], soak: Soak) -> dict[str, list[tuple[float, float]]]:
    """Samples (seconds, megabytes) of each process's own memory until the run ends."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    while (now := time.monotonic() - soak.started) < soak.seconds:
        for name, pid in processes.items():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue
            kilobytes = sum(
                int(status.partition(f"{kind}:")[2].split()[0]) for kind in ("RssAnon", "RssShmem")
            )
            samples[name].append((now, kilobytes / 1024))
        time.sleep(_SAMPLE_INTERVAL)
    return samples


def _report(
    soak: Soak,
    memory: dict[str, list[tuple[float, float]]],
    same_processes: bool,
    p99_tolerance: float,
) -> int:
    problems = []
    print(f"{len(soak.answers):,} answers in {soak.seconds / 60:g} min "
          f"({len(soak.answers) / soak.seconds:.0f} a second), {len(soak.errors)} errors, "
          f"{len(soak.wrong)} wrong")  # fmt: skip
    problems += [f"error: {message}" for message in dict.fromkeys(soak.errors)]
    problems += soak.wrong[:5]
    if not same_processes:
        problems.append("a process of the server died during the run")
    judged = (1 - _WARM_UP) * soak.seconds
    for name, samples in memory.items():
        late = np.array([sample for sample in samples if sample[0] >= _WARM_UP * soak.seconds])
        slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] if len(late) > 1 else 0.0
        print(f"{name:18} {samples[0][1]:6.0f} MB at the start, {samples[-1][1]:6.0f} at the end, "
              f"slope {3600 * slope:+7.1f} MB/hour")  # fmt: skip
        if slope * judged > _FLAT:
            problems.append(f"{name} grew by {slope * judged:.0f} MB in {judged / 60:.1f} min")
    print(f"each tenth: answers a second {_row(soak.rate(*part) for part in _TENTHS)}")
    print(f"            p99 in ms        {_row(soak.p99(*part) for part in _TENTHS)}")
    first, last = soak.p99(0.02, 0.02 + _WINDOW), soak.p99(1 - _WINDOW, 1)
    print(f"p99 {first:.1f} ms at the start, {last:.1f} ms at the end ({last / first - 1:+.0%})")
    if not last <= (1 + p99_tolerance) * first:
        problems.append(f"p99 rose by more than {p99_tolerance:.0%}")
    for problem in problems:
        print(f"soak: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _row(figures: Iterable[float]) -> str:
    return " ".join(f"{figure:6.1f}" for figure in figures)


def _parse() -> argparse.Namespace:
    port = os.environ.get("TRITON_HTTP_PORT", "8000")
    folder = Path(os.environ.get("OUTPUT_DIR") or REPOSITORY_ROOT)
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--url", default=f"http://127.0.0.1:{port}", help="Triton's HTTP endpoint")
    parser.add_argument("--gallery", type=Path, default=folder / "gallery", help="of that build")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--p99-tolerance", type=float, default=0.2, metavar="SHARE",
                        help="by which p99 may rise from start to end")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
