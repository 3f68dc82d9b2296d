"""Update an index again and again while clients search, and check every answer.

    python -m reverse_image_search.benchmark.live_updates --updates 200 --clients 16 --index exact

Serves a synthetic build with the local runtime. Each update adds images, removes some, or both; the
encoder only flattens pixels, so every answer can be compared with a NumPy oracle. An answer is
right if it is that of a version that was current at some moment of the request. The exit code is 1
after a failed request or a wrong answer.
"""

import contextlib
import http.client
import itertools
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil

from reverse_image_search import contract, layout
from reverse_image_search.benchmark.measurements import describe_machine, server_processes
from reverse_image_search.benchmark.servers import local_server
from reverse_image_search.benchmark.updated_build import TOLERANCE, UpdatedBuild
from reverse_image_search.client import Client
from reverse_image_search.client.search import WrongAnswerError, search_gallery
from reverse_image_search.command_line import make_parser
from reverse_image_search.gallery import Gallery
from reverse_image_search.indexes import INDEXES
from reverse_image_search.serving.live import wait_until_served

_CHANGED = 5  # images that an update adds, removes, or both
_PAUSE = 0.1  # seconds between two searches of a client: without, loading waits for processors


class Load:
    """Clients that search again and again, and what they were answered.

    Also asks the server, over and over, whether it is ready.

    Parameters
    ----------
    like_the_page : whether all clients search as the page does, else each fourth: an answer must
        belong to the gallery; where it does not, the client is told so, which counts as `refused`.
        Of the others, each fourth searches in one call.
    """

    def __init__(self, build: UpdatedBuild, url: str, clients: int, like_the_page: bool) -> None:
        self.answers = self.refused = 0
        self.problems: Counter[str] = Counter()
        self._build, self._url = build, url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watch_readiness)]
        self._threads += [
            threading.Thread(target=self._search, args=(number, like_the_page or number % 4 == 0))
            for number in range(clients)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _search(self, number: int, like_the_page: bool) -> None:
        client = Client(self._url, timeout=30, one_call=number % 4 == 1)
        for image in itertools.cycle(self._build.queries[number:] + self._build.queries[:number]):
            if self._stop.wait(_PAUSE):
                return
            begin = time.monotonic()
            try:
                if like_the_page:
                    gallery = Gallery(layout.gallery_file(self._build.output_dir))
                    with contextlib.closing(gallery):
                        ids, scores, *_ = search_gallery(client, gallery, image)
                else:
                    (ids,), (scores,) = client.search([image])
            except WrongAnswerError:
                self.refused += 1
                continue
            except Exception as error:
                self.problems[f"failed: {error!r}"] += 1
                continue
            self.answers += 1
            if not self._build.is_right(image, ids, scores, begin, time.monotonic()):
                self.problems["wrong answer"] += 1

    def _watch_readiness(self) -> None:
        address = urlsplit(self._url)
        paths = ["/v2/health/ready", *(f"/v2/models/{m.name}/ready" for m in contract.MODELS)]
        while not self._stop.wait(0.05):
            connection = http.client.HTTPConnection(address.hostname or "", address.port)
            with contextlib.closing(connection):
                for path in paths:
                    try:
                        connection.request("GET", path)
                        response = connection.getresponse()
                        response.read()
                    except (OSError, http.client.HTTPException) as error:
                        self.problems[f"{path}: {error!r}"] += 1
                        break
                    if response.status != 200:
                        self.problems[f"{path}: {response.status}"] += 1


@dataclass
class Report:
    """What a run of updates came to."""

    answers: int
    problems: Counter[str]
    publish: list[float]  # seconds of each update: to write and publish
    take_over: list[float]  # and then until the server answers with it
    memory: list[float]  # MB of the server's processes after each update
    processes: int  # of the server, at the end

    def print(self) -> None:
        """Print times, problems and memory."""
        total = np.add(self.publish, self.take_over)
        print(f"{len(total)} updates, {self.answers:,} answers meanwhile")
        for name, times in (
            ("write and publish", self.publish),
            ("until the server answers with it", self.take_over),
            ("both", total),
        ):
            p50, p95 = np.percentile(times, [50, 95])
            print(f"  {name:33} p50 {p50:.2f} s, p95 {p95:.2f} s, longest {max(times):.2f} s")
        print(f"  failed and wrong: {dict(self.problems) or 'none'}")
        if any(self.memory):
            late = self.memory[len(self.memory) // 3 :]
            slope = np.polyfit(range(len(late)), late, 1)[0] if len(late) > 1 else 0.0
            print(f"  memory {self.memory[0]:.0f} MB after the first update, {self.memory[-1]:.0f} "
                  f"after the last, slope {100 * slope:+.1f} MB in 100 updates; "
                  f"{self.processes} processes")  # fmt: skip


def run_updates(build: UpdatedBuild, url: str, updates: int, clients: int) -> Report:
    """Update `build`, which the server at `url` serves, under load.

    After each update, each added image must find itself first, and no removed one be found.
    """
    client = Client(url, timeout=30)
    publish, take_over, memory = [], [], []
    with (
        contextlib.suppress(KeyboardInterrupt),  # reports on what was done
        Load(build, url, clients, like_the_page=False) as load,
    ):
        for number in range(updates):
            add, remove = ((_CHANGED, 0), (0, _CHANGED), (_CHANGED, _CHANGED))[number % 3]
            images = dict(build.images)
            start = time.monotonic()
            added, removed = build.update(add, remove)
            published = time.monotonic()
            seconds = wait_until_served(build.output_dir, url)
            if seconds is None:
                raise RuntimeError(f"no server of this build runs at {url}")
            build.took_effect()
            images |= build.images
            for each in added + removed:
                (ids,), (scores,) = client.search([images[each]])
                if each in added and not (ids[0] == each and scores[0] > 1 - TOLERANCE):
                    load.problems["added, but not found first"] += 1
                if each in removed and each in ids:
                    load.problems["removed, but found"] += 1
            publish.append(published - start)
            take_over.append(seconds)
            memory.append(_server_memory(url))
    if load.refused:
        load.problems["refused"] = load.refused
    _wait_until_unloaded(url)
    processes = len(_processes(url))
    return Report(load.answers, load.problems, publish, take_over, memory, processes)


def _server_memory(url: str) -> float:
    total = 0.0
    for process in _processes(url):
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss / 2**20
    return total


def _processes(url: str) -> list[psutil.Process]:
    """Of tritonserver and its models; none of a server in a container."""
    found = []
    for process in server_processes(urlsplit(url).port or 80):
        with contextlib.suppress(psutil.Error):
            program = (process.cmdline() or [""])[0]
            if "triton" in program and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _wait_until_unloaded(url: str, timeout: float = 30) -> None:
    """Wait until the server and one process a model are left."""
    deadline = time.monotonic() + timeout
    while len(_processes(url)) > 1 + len(contract.MODELS) and time.monotonic() < deadline:
        time.sleep(0.1)


def main() -> int:
    """Run, print the report, and return the exit code."""
    description = __doc__.partition("\n")[0]
    parser = make_parser(description, updates=200, clients=16, images=2000, side=4)
    parser.add_argument("--index", choices=INDEXES, default=next(iter(INDEXES)))
    options = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as folder:
        build = UpdatedBuild(Path(folder), options.images, options.side, index=options.index)
        repositories = [Path(folder) / part for part in (layout.MODEL_REPO, layout.ENSEMBLE_REPO)]
        with local_server(repositories) as url:
            report = run_updates(build, url, options.updates, options.clients)
        build.drop()
    report.print()
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
