"""Search without pause for minutes or hours, and report what grew, slowed down or went wrong.

    python -m reverse_image_search.benchmark.soak --minutes 30 --clients 32

Run it next to a server of the local runtime. Each client searches with gallery images, one after
the other; every answer must equal the one before the run, in which the image found itself. The
exit code is 1 after an error or a wrong answer, when a process's memory is not flat, or when the
slowest answers are slower at the end than at the start.
"""

import contextlib
import random
import sys
import threading
import time
from array import array
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from reverse_image_search.benchmark.measurements import server_processes
from reverse_image_search.client import Client, TritonError
from reverse_image_search.client.search import WrongAnswerError, check_identity
from reverse_image_search.command_line import make_parser
from reverse_image_search.gallery import Gallery, GalleryError
from reverse_image_search.layout import START_COMMAND, gallery_file

_QUERIES = 256  # different images in turn
_TOLERANCE = 1e-4  # of a score: the batch that a query shares changes rounding
_WARM_UP = 1 / 3  # of the run: caches fill and the allocator grows before memory is measured
_FLAT = 16.0  # MB that a process may grow by over the measured part of the run
# Pixels of a gallery image, ids that score best (its own, mostly), all scores (K,).
Question = tuple[np.ndarray, set[int], np.ndarray]


def main() -> int:
    """Search until the time is up, print the report, and return the exit code."""
    parser = make_parser(__doc__.partition("\n")[0], minutes=30.0, clients=32, p99_tolerance=0.2)
    options = parser.parse_args()
    client = Client(options.url)
    port = urlsplit(options.url).port or 80
    processes = _processes(port)
    if not processes:
        sys.exit(f"soak: no tritonserver of this machine serves port {port}. Start it with "
                 f"RUNTIME=local {START_COMMAND}")  # fmt: skip
    try:
        questions = ask_beforehand(client, Gallery(gallery_file(options.output_dir)))
    except (GalleryError, TritonError, WrongAnswerError) as error:
        sys.exit(f"soak: {error}")
    seconds = 60 * options.minutes
    # Of each client: when, latency, when, latency, ... in 8 bytes an answer, since this process's
    # memory is watched as well.
    timings = [array("f") for _ in range(options.clients)]
    problems: list[str] = []
    begin = time.monotonic()

    def search_until_the_end(client_number: int) -> None:
        rng = random.Random(client_number)
        while (start := time.monotonic()) < begin + seconds:
            pixels, best_ids, right_scores = rng.choice(questions)
            try:
                (ids,), (scores,) = client.search([pixels])
            except TritonError as error:
                problems.append(f"error: {error}")
                continue
            now = time.monotonic()
            timings[client_number].extend((now - begin, now - start))
            if ids[0] not in best_ids or not np.allclose(
                scores, right_scores, rtol=0, atol=_TOLERANCE
            ):
                problems.append(f"wrong: {ids[:3]}, not {sorted(best_ids)}")

    threads = [
        threading.Thread(target=search_until_the_end, args=(number,), daemon=True)
        for number in range(options.clients)
    ]
    for thread in threads:
        thread.start()
    memory: dict[str, list[tuple[float, float]]] = {name: [] for name in processes}
    while (now := time.monotonic() - begin) < seconds:
        for name, process in processes.items():
            with contextlib.suppress(psutil.NoSuchProcess):
                memory[name].append((now, process.memory_info().rss / 2**20))
        time.sleep(1)
    for thread in threads:
        thread.join()
    print(f"{sum(map(len, timings)) // 2:,} answers in {options.minutes:g} min, "
          f"{len(problems)} failed or wrong")  # fmt: skip
    if _processes(port) != processes:
        problems.append("a process of the server died during the run")
    problems += _report_latency(np.concatenate(timings).reshape(-1, 2), options.p99_tolerance)
    for name, samples in memory.items():
        problems += _report_memory(name, *np.array(samples).T)
    for problem in dict.fromkeys(problems):
        print(f"soak: {problem}", file=sys.stderr)
    return 1 if problems else 0


def ask_beforehand(client: Client, gallery: Gallery, seed: int = 0) -> list[Question]:
    """Gallery images and the answers to them; a `WrongAnswerError` where one does not find itself,
    or the server is of another build.
    """
    check_identity(client, gallery)
    ids = np.random.default_rng(seed).permutation(gallery.ids())[:_QUERIES]
    questions: list[Question] = []
    for image in gallery.images(ids):
        (found,), (scores,) = client.search([image.pixels])
        best_ids = set(found[scores >= scores[0] - _TOLERANCE].tolist())
        # A dataset may hold an image twice.
        if all(image.sha256 != best.sha256 for best in gallery.images(best_ids)):
            raise WrongAnswerError(f"gallery image {image.id} finds {sorted(best_ids)}")
        questions.append((image.pixels, best_ids, scores))
    return questions


def _processes(http_port: int) -> dict[str, psutil.Process]:
    """By role: the server, one process per model, and this one."""
    found = {}
    for process in server_processes(http_port):
        command = process.cmdline()
        is_model = command[0].endswith("triton_python_backend_stub")
        found[Path(command[1]).parent.parent.name if is_model else "tritonserver"] = process
    return {**dict(sorted(found.items())), "clients": psutil.Process()} if found else {}


def _report_latency(timings: np.ndarray, p99_tolerance: float) -> list[str]:
    """The problem, if any, of answers (n, 2), when and latency in seconds."""
    milliseconds = 1e3 * timings[timings[:, 0].argsort(), 1]

    def p99(begin: float, end: float) -> float:
        part = milliseconds[int(begin * len(milliseconds)) : int(end * len(milliseconds))]
        return np.percentile(part, 99) if len(part) else float("nan")

    # Printed, so that a slow minute can be told from a server that gets slower.
    tenths = (f"{p99(tenth / 10, (tenth + 1) / 10):.1f}" for tenth in range(10))
    print("p99 of each tenth of the answers, ms:", *tenths)
    first, last = p99(0.02, 0.22), p99(0.8, 1)
    print(f"p99 {first:.1f} ms at the start, {last:.1f} ms at the end ({last / first - 1:+.0%})")
    return [] if last <= (1 + p99_tolerance) * first else [f"p99 rose by over {p99_tolerance:.0%}"]


def _report_memory(name: str, seconds: np.ndarray, megabytes: np.ndarray) -> list[str]:
    """The problem, if any, of one process's memory over time."""
    is_late = seconds >= _WARM_UP * seconds[-1]
    slope = np.polyfit(seconds[is_late], megabytes[is_late], 1)[0] if is_late.sum() > 1 else 0.0
    growth = (1 - _WARM_UP) * seconds[-1] * slope
    print(f"{name:18} {megabytes[0]:6.0f} MB at the start, {megabytes[-1]:6.0f} at the end, "
          f"slope {3600 * slope:+7.1f} MB/hour")  # fmt: skip
    return [f"{name} grew by {growth:.0f} MB after the warm-up"] if growth > _FLAT else []


if __name__ == "__main__":
    sys.exit(main())
