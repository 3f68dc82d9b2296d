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
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reverse_image_search import contract, layout
from reverse_image_search.benchmark.measurements import describe_machine, server_processes
from reverse_image_search.benchmark.servers import local_server
from reverse_image_search.client import Client
from reverse_image_search.client.search import WrongAnswerError, search_gallery
from reverse_image_search.command_line import make_parser
from reverse_image_search.gallery import Gallery, GalleryImage, GalleryMetadata, rows_of
from reverse_image_search.gallery_writer import write_gallery
from reverse_image_search.indexes import INDEXES, IndexOptions, VectorDatabase
from reverse_image_search.serving.export import write_model_files
from reverse_image_search.serving.index_files import write_index
from reverse_image_search.serving.live import wait_until_served
from reverse_image_search.serving.model_config import write_configs
from reverse_image_search.serving.publishing import (
    KEEP_VERSIONS,
    publish_index_version,
    staging,
    staging_update,
)

_TOP_K = 20
_QUERIES = 32
_CHANGED = 5  # images that an update adds, removes, or both
_PAUSE = 0.1  # seconds between two searches of a client: without, loading waits for processors
_LEAST_FOUND = 0.9  # of the K nearest, by an index that is approximate
_TOLERANCE = 1e-4  # of a score: the batch that a query shares changes rounding


class FlattenedPixels(nn.Module):
    """An encoder whose embeddings are the pixels; mirrored, it is another one."""

    def __init__(self, is_mirrored: bool) -> None:
        super().__init__()
        self.is_mirrored = is_mirrored

    def forward(self, images: Tensor) -> Tensor:
        """Embed images: (batch, 3, side, side) -> (batch, 3 * side * side)."""
        if self.is_mirrored:
            images = images.flip(3)
        return F.normalize(images.flatten(1) - 0.5)


@dataclass(frozen=True)
class Version:
    """What one version of the index holds, and when it may have been current."""

    ids: np.ndarray  # (N,)
    embeddings: np.ndarray  # (N, D)
    is_mirrored: bool  # the encoder
    begin: float  # just before it was published
    least_found: float  # share of the K nearest that an answer must have

    def holds(self, image: np.ndarray, ids: np.ndarray, scores: np.ndarray) -> bool:
        """Whether these are the K nearest neighbors of an image, best first."""
        all_scores = self.embeddings @ embed(image, self.is_mirrored)
        rows = rows_of(ids, self.ids)
        lowest = np.partition(all_scores, -len(ids))[-len(ids)]
        return bool(
            (rows >= 0).all()
            and len(np.unique(ids)) == len(ids)
            and np.allclose(all_scores[rows], scores, rtol=0, atol=_TOLERANCE)
            and (np.diff(scores) <= 0).all()
            and np.mean(scores >= lowest - _TOLERANCE) >= self.least_found
        )


class UpdatedBuild:
    """A synthetic build of random images, and the history of its index.

    Parameters
    ----------
    output_dir : empty; gets ``model_repo/``, ``ensemble_repo/`` and ``gallery/``
    side : pixels of an image, whose embedding has 3 * side * side dimensions
    index : of the registry
    """

    def __init__(
        self,
        output_dir: Path,
        image_count: int,
        side: int = 4,
        seed: int = 0,
        index: str = next(iter(INDEXES)),
    ) -> None:
        self.output_dir, self._side, self._dims = output_dir, side, 3 * side * side
        self._index = INDEXES[index]
        self._index_name = ""
        self._rng = np.random.default_rng(seed)
        self._next_id = 0
        self.images: dict[int, np.ndarray] = {}  # (3, side, side) float32, by id
        self.queries = [self._random_image() for _ in range(_QUERIES)]
        self.is_mirrored = False
        self.history: list[Version] = []
        self._ended: dict[int, float] = {}  # when the update after a version had returned
        self._add(image_count)
        with staging(output_dir) as folder:
            self._write_build(folder)

    def rebuild(self) -> None:
        """Publish a build with another encoder and other images under the same ids."""
        self.is_mirrored = not self.is_mirrored
        self.images = {each: self._random_image() for each in self.images}
        with staging(self.output_dir) as folder:
            self._write_build(folder)

    def returned_to(self, number: int) -> None:
        """The version `number` of the history was published again."""
        self.history.append(replace(self.history[number], begin=time.monotonic()))

    def update(self, add: int, remove: int) -> tuple[list[int], list[int]]:
        """Publish a version with `add` more images and `remove` fewer: their ids."""
        removed = self._rng.choice(np.array(list(self.images)), remove, replace=False).tolist()
        with_both = dict(self.images)
        for each in removed:
            del self.images[each]
        added = self._add(add)
        if database := self._index.database:
            with_both |= self.images
            with staging_update(
                self.output_dir, lambda: self._update_database(database, added, removed, with_both)
            ) as folder:
                self._write_gallery(folder)
        else:
            publish_index_version(self.output_dir, self._write_update)
        return added, removed

    def drop(self) -> None:
        """Delete what is in a database."""
        if self._index.database:
            self._index.database.drop(self._index_name)

    def took_effect(self) -> None:
        """The running server has taken the newest version over: older ones are wrong from now."""
        for number in range(len(self.history) - 1):
            self._ended.setdefault(number, time.monotonic())

    def is_right(
        self, image: np.ndarray, ids: np.ndarray, scores: np.ndarray, begin: float, end: float
    ) -> bool:
        """Whether a version that was current between `begin` and `end` gives this answer."""
        current = (
            version
            for number, version in enumerate(self.history)
            if version.begin <= end and self._ended.get(number, end) >= begin
        )
        return any(version.holds(image, ids, scores) for version in current)

    def _random_image(self) -> np.ndarray:
        return self._rng.random((3, self._side, self._side), dtype=np.float32)

    def _add(self, count: int) -> list[int]:
        ids = list(range(self._next_id, self._next_id + count))
        self._next_id += count
        self.images |= {each: self._random_image() for each in ids}
        return ids

    def _write_build(self, folder: Path) -> None:
        model_repo = folder / layout.MODEL_REPO
        encoder_folder = layout.version_folder(model_repo, contract.IMAGE_ENCODER.name)
        write_model_files(
            {layout.MODEL_FILENAME: FlattenedPixels(self.is_mirrored)}, encoder_folder, input_ndim=4
        )
        self._index_name = f"live_updates_{uuid.uuid4().hex}"
        self._write_update(folder)
        write_configs(folder, self._metadata, self._dims, _TOP_K, self._index, self._index_name)

    def _write_update(self, folder: Path) -> None:
        version = self._version(self.images)
        write_index(
            self._index,
            version.ids,
            version.embeddings,
            IndexOptions(_TOP_K, name=self._index_name),
            layout.version_folder(folder / layout.MODEL_REPO, contract.VECTOR_SIMILARITY.name),
        )
        self._write_gallery(folder)
        self.history.append(replace(version, begin=time.monotonic()))

    def _update_database(
        self,
        database: VectorDatabase,
        added: list[int],
        removed: list[int],
        with_both: dict[int, np.ndarray],
    ) -> None:
        """Change the index in place, which is not one step: images are added first."""
        self.history += [self._version(with_both), self._version(self.images)]
        final = self.history[-1]
        vectors = torch.from_numpy(final.embeddings[rows_of(np.array(added, int), final.ids)])
        new, gone = (torch.tensor(ids, dtype=torch.int64) for ids in (added, removed))
        database.update(self._index_name, new, vectors, gone)

    def _version(self, images: dict[int, np.ndarray]) -> Version:
        """That of an index of these images, by ascending id."""
        ids = np.array(sorted(images))
        embeddings = embed(np.stack([images[each] for each in ids]), self.is_mirrored)
        least_found = 1.0 if self._index.is_exact else _LEAST_FOUND
        return Version(ids, embeddings, self.is_mirrored, time.monotonic(), least_found)

    def _write_gallery(self, folder: Path) -> None:
        # Rows of removed images stay as long as a kept version of the index has them.
        kept = [set(version.ids.tolist()) for version in self.history[1 - KEEP_VERSIONS :]]
        rows = sorted(set(self.images).union(*kept))
        sides = self._side, self._side
        images = (GalleryImage(each, str(each), None, *sides, b"", b"") for each in rows)
        write_gallery(layout.gallery_file(folder), self._metadata, images)

    @property
    def _metadata(self) -> GalleryMetadata:
        sides = self._side, self._side
        return GalleryMetadata(self._name, self._name, "pixels", [], *sides, False, False)

    @property
    def _name(self) -> str:
        return "mirrored" if self.is_mirrored else "pixels"


def embed(image: np.ndarray, is_mirrored: bool) -> np.ndarray:
    """The embedding of one image or of several, as `FlattenedPixels` makes it."""
    if is_mirrored:
        image = image[..., ::-1]
    flat = image.reshape(*image.shape[:-3], -1) - 0.5
    return flat / np.linalg.norm(flat, axis=-1, keepdims=True)


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
                if each in added and not (ids[0] == each and scores[0] > 1 - _TOLERANCE):
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
