"""Search without pause for minutes or hours, and report what grew, slowed down or went wrong.

    python -m reverse_image_search.benchmark.soak --minutes 30 --clients 32

Run it next to a server of the local runtime. Each client searches with gallery images, one after
the other; every answer must equal the one before the run, in which the image found itself. The
exit code is 1 after an error or a wrong answer, when a process's memory is not flat, or when the
slowest answers are slower at the end than at the start.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import threading
import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from reverse_image_search.benchmark.server_statistics import server_processes
from reverse_image_search.client import Client, TritonError
from reverse_image_search.client.search import WrongAnswerError, check_identity
from reverse_image_search.gallery import Gallery, GalleryError
from reverse_image_search.layout import REPOSITORY_ROOT, START_COMMAND, gallery_file

_QUERIES = 256  # different images in turn
_TOLERANCE = 1e-4  # of a score: the batch that a query shares changes rounding
# Memory is measured after this share of the run: first, caches fill and the allocator grows.
_WARM_UP = 1 / 3
_FLAT = 16.0  # MB that a process may grow by over the measured part of the run
_COMPARED = 1 / 5  # of the run: its first and its last part are compared for latency


@dataclass(frozen=True)
class Question:
    """A gallery image and its right answer.

    Attributes
    ----------
    pixels : (height, width) or (height, width, 3) uint8
    best_ids : of the image itself and of those that score the same
    scores : (K,) float32
    """

    pixels: np.ndarray
    best_ids: set[int]
    scores: np.ndarray


@dataclass
class Soak:
    """Clients that search, and their results."""

    client: Client
    questions: list[Question]
    seconds: float
    started: float = field(default_factory=time.monotonic)
    # One (2 * answers,) per client: when, latency, when, latency, ... in seconds.
    timings: list[array] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def search_until_the_end(self, seed: int) -> None:
        """One client; ends when the time is up."""
        rng = random.Random(seed)
        timings = array("f")  # 8 bytes an answer: this process's memory is watched as well
        self.timings.append(timings)
        while (begin := time.monotonic() - self.started) < self.seconds:
            question = rng.choice(self.questions)
            try:
                ids, scores = self.client.search([question.pixels])
            except TritonError as error:
                self.problems.append(f"error: {error}")
                continue
            now = time.monotonic() - self.started
            timings.extend((now, now - begin))
            if int(ids[0, 0]) not in question.best_ids or not np.allclose(
                scores[0], question.scores, rtol=0, atol=_TOLERANCE
            ):
                self.problems.append(f"wrong: {ids[0, :3]}, not {sorted(question.best_ids)}")

    def latencies(self, begin: float = 0, end: float = 1) -> np.ndarray:
        """Milliseconds of the answers in a part of the run; 0 is its start, 1 its end."""
        when, latency = np.concatenate(self.timings).reshape(-1, 2).T
        return 1e3 * latency[(when >= begin * self.seconds) & (when < end * self.seconds)]

    def p99(self, begin: float, end: float) -> float:
        """99th percentile of `latencies`."""
        part = self.latencies(begin, end)
        return float(np.percentile(part, 99)) if len(part) else float("nan")


def main() -> int:
    """Run, print the report, and return the exit code."""
    options = _parse()
    port = urlsplit(options.url).port or 80
    processes = _processes(port)
    if not processes:
        print(
            f"soak: no tritonserver of this machine serves port {port}. Start it with "
            f"RUNTIME=local {START_COMMAND}",
            file=sys.stderr,
        )
        return 1
    client = Client(options.url)
    try:
        questions = ask_beforehand(client, Gallery(gallery_file(options.output_dir)))
    except (GalleryError, TritonError, WrongAnswerError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    soak = Soak(client, questions, 60 * options.minutes)
    threads = [
        threading.Thread(target=soak.search_until_the_end, args=(seed,), daemon=True)
        for seed in range(options.clients)
    ]
    for thread in threads:
        thread.start()
    memory = _watch_memory(processes, soak)
    for thread in threads:
        thread.join()
    problems = _report_latency(soak, options.p99_tolerance) + _report_memory(soak, memory)
    if _processes(port) != processes:
        problems.append("a process of the server died during the run")
    for problem in problems:
        print(f"soak: {problem}", file=sys.stderr)
    return 1 if problems else 0


def ask_beforehand(client: Client, gallery: Gallery, seed: int = 0) -> list[Question]:
    """Gallery images and the answers to them; each must find itself.

    Raises
    ------
    WrongAnswerError : the server is of another build, or an image does not find itself
    GalleryError, TritonError : gallery or server does not answer
    """
    check_identity(client, gallery)
    ids = np.random.default_rng(seed).permutation(gallery.ids())[:_QUERIES]
    questions = []
    for image in gallery.images(ids):
        (found,), (scores,) = client.search([image.pixels])
        best_ids = set(found[scores >= scores[0] - _TOLERANCE].tolist())
        # A dataset may hold an image twice.
        if all(image.sha256 != best.sha256 for best in gallery.images(best_ids)):
            raise WrongAnswerError(f"gallery image {image.id} finds {sorted(best_ids)}")
        questions.append(Question(image.pixels, best_ids, scores))
    return questions


def _processes(http_port: int) -> dict[str, psutil.Process]:
    """By role: the server, one process per model, and this one."""
    found = {}
    for process in server_processes(http_port):
        command = process.cmdline()
        is_model = command[0].endswith("triton_python_backend_stub")
        found[Path(command[1]).parent.parent.name if is_model else "tritonserver"] = process
    return {**dict(sorted(found.items())), "clients": psutil.Process()} if found else {}


def _watch_memory(processes: dict[str, psutil.Process], soak: Soak) -> dict[str, np.ndarray]:
    """Samples (n, 2), seconds and megabytes, of each process's memory until the run ends."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    while (now := time.monotonic() - soak.started) < soak.seconds:
        for name, process in processes.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                samples[name].append((now, process.memory_info().rss / 2**20))
        time.sleep(1)
    return {name: np.array(of_process) for name, of_process in samples.items()}


def _report_latency(soak: Soak, p99_tolerance: float) -> list[str]:
    answers = len(soak.latencies())
    rate = answers / soak.seconds
    print(f"{answers:,} answers in {soak.seconds / 60:g} min ({rate:.0f} a second), "
          f"{len(soak.problems)} failed or wrong")  # fmt: skip
    # Printed, so that a slow minute can be told from a server that gets slower.
    tenths = [(tenth / 10, (tenth + 1) / 10) for tenth in range(10)]
    rates = [10 * len(soak.latencies(*tenth)) / soak.seconds for tenth in tenths]
    print("each tenth: answers a second " + " ".join(f"{rate:6.1f}" for rate in rates))
    print("            p99 in ms        " + " ".join(f"{soak.p99(*t):6.1f}" for t in tenths))
    first, last = soak.p99(0.02, 0.02 + _COMPARED), soak.p99(1 - _COMPARED, 1)
    print(f"p99 {first:.1f} ms at the start, {last:.1f} ms at the end ({last / first - 1:+.0%})")
    problems = list(dict.fromkeys(soak.problems))
    if not last <= (1 + p99_tolerance) * first:
        problems.append(f"p99 rose by more than {p99_tolerance:.0%}")
    return problems


def _report_memory(soak: Soak, memory: dict[str, np.ndarray]) -> list[str]:
    measured = (1 - _WARM_UP) * soak.seconds
    problems = []
    for name, samples in memory.items():
        late = samples[samples[:, 0] >= _WARM_UP * soak.seconds]
        slope = np.polyfit(late[:, 0], late[:, 1], 1)[0] if len(late) > 1 else 0.0
        print(f"{name:18} {samples[0, 1]:6.0f} MB at the start, {samples[-1, 1]:6.0f} at the end, "
              f"slope {3600 * slope:+7.1f} MB/hour")  # fmt: skip
        if slope * measured > _FLAT:
            problems.append(f"{name} grew by {slope * measured:.0f} MB in {measured / 60:.1f} min")
    return problems


def _parse() -> argparse.Namespace:
    port = os.environ.get("TRITON_HTTP_PORT", "8000")
    folder = Path(os.environ.get("OUTPUT_DIR") or REPOSITORY_ROOT)
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--url", default=f"http://127.0.0.1:{port}", help="Triton's HTTP endpoint")
    add("--output-dir", type=Path, default=folder, help="of the served build")
    add("--minutes", type=float, default=30)
    add("--clients", type=int, default=32)
    add("--p99-tolerance", type=float, default=0.2, metavar="SHARE", help="that p99 may rise by")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
