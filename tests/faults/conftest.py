"""Counts what the fault suite tries, and prints it as a table at the end of the run."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverse_image_search import build_models, contract
from reverse_image_search.client import Client, Neighbors
from reverse_image_search.encoders import ENCODERS
from reverse_image_search.gallery import Gallery
from tests.integration.toy_build import GRID
from tests.milvus_server import MilvusServer
from tests.running import Triton, processes_naming, start_server, stop_server

QUERIES = 4  # images of the gallery whose answers are known

_tallies: list[Tally] = []


class Tally:
    """One line of the closing table: cases tried, survived and lost."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tried = 0
        self.lost: list[str] = []
        self.note = ""
        self.seconds = 0.0

    @contextlib.contextmanager
    def case(self, name: str) -> Iterator[None]:
        """One case: lost when its block raises. The other cases are tried all the same."""
        self.tried += 1
        try:
            yield
        except (Exception, pytest.fail.Exception) as error:
            self.lost.append(f"{name}: {type(error).__name__}: {error}")


@pytest.fixture
def tally() -> Iterator[Callable[[str], Tally]]:
    """``tally("what is tried")``; the test fails at its end when a case was lost."""
    started = time.monotonic()
    made: list[Tally] = []

    def make(name: str) -> Tally:
        made.append(Tally(name))
        _tallies.append(made[-1])
        return made[-1]

    yield make
    for each in made:
        each.seconds = (time.monotonic() - started) / len(made)
    lost = [case for each in made for case in each.lost]
    if lost:
        more = f"\n... and {len(lost) - 20} more" if len(lost) > 20 else ""
        pytest.fail(f"{len(lost)} cases lost:\n" + "\n".join(lost[:20]) + more, pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a parallel worker's tallies to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tallies"] = [vars(each) for each in _tallies]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """Take the tallies of a parallel worker that has ended."""
    for values in getattr(node, "workeroutput", {}).get("tallies", []):
        _tallies.append(Tally(values["name"]))
        vars(_tallies[-1]).update(values)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The closing table."""
    if not _tallies:
        return
    terminalreporter.section("faults: cases tried, survived, lost")
    width = max(len(each.name) for each in _tallies)
    terminalreporter.write_line(f"{'fault':{width}}  cases  survived  lost  seconds")
    for each in _tallies:
        lost = len(each.lost)
        terminalreporter.write_line(
            f"{each.name:{width}}  {each.tried:5}  {each.tried - lost:8}  {lost:4}  "
            f"{each.seconds:7.1f}  {each.note}".rstrip()
        )
    tried, lost = sum(t.tried for t in _tallies), sum(len(t.lost) for t in _tallies)
    seconds = sum(t.seconds for t in _tallies)
    terminalreporter.write_line(
        f"{'all':{width}}  {tried:5}  {tried - lost:8}  {lost:4}  {seconds:7.1f}"
    )


@pytest.fixture(scope="module")
def victim(small_build: Path) -> Iterator[Triton]:
    """A server that the tests of one file may kill."""
    server = start_server(small_build)
    yield server
    stop_server(server)


@pytest.fixture(scope="session")
def known_queries(gallery: Gallery) -> np.ndarray:
    """(QUERIES, 28, 28) uint8: images of the gallery."""
    return np.stack([image.pixels for image in gallery.images(range(QUERIES))])


@pytest.fixture(scope="module")
def known_answer(victim: Triton, known_queries: np.ndarray) -> Neighbors:
    """What the served models answer to `known_queries` before anything is broken.

    Each image finds itself first, at score 1: the ids are known without the server.
    """
    answer = Client(victim.url, timeout=60).search(known_queries)
    np.testing.assert_array_equal(answer.ids[:, 0], np.arange(QUERIES))
    np.testing.assert_allclose(answer.scores[:, 0], 1, atol=1e-5)
    return answer


@pytest.fixture
def build_copy(small_build: Path, tmp_path: Path) -> Path:
    """A copy of the small build, to be damaged."""
    return shutil.copytree(small_build, tmp_path / "build")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, milvus: MilvusServer) -> Path:
    """Folder of twelve photos, 0.png to 11.png, built into `tmp_path` and Milvus."""
    monkeypatch.setitem(ENCODERS, "grid", GRID)
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(12):
        photo(seed, folder)
    arguments = ["--images", str(folder), "--encoder", "grid", "--index", "milvus"]
    assert build_models.main([*arguments, "--output-dir", str(tmp_path)]) == 0
    return folder


def photo(seed: int, folder: Path) -> Path:
    """A file of soft blobs of color that no other seed has."""
    colors = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    path = folder / f"{seed}.png"
    Image.fromarray(colors).resize((60, 40), Image.Resampling.BICUBIC).save(path)
    return path


def is_right(answer: Neighbors, known: Neighbors) -> bool:
    """Whether `answer` is the one that was given before, but for rounding."""
    first = slice(0, len(answer.ids))
    return np.array_equal(answer.ids[:, 0], known.ids[first, 0]) and np.allclose(
        answer.scores, known.scores[first], atol=1e-5
    )


def slowdown() -> float:
    """Processes that want to run, for each processor, over the last minute; at least 1."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def ready_again() -> float:
    """Seconds after a death within which the server must answer again."""
    return 15 * slowdown()


def wait_for_right_answer(
    client: Client, queries: np.ndarray, known: Neighbors, grace: float = 0.0
) -> float:
    """Ask until the right answer comes; seconds that took. A wrong answer fails at once.

    `grace`: seconds before the server is taken for dead.
    """
    start = time.monotonic()
    while True:
        try:
            answer = client.search(queries)
        except Exception as error:
            if time.monotonic() - start > (timeout := grace + ready_again()):
                pytest.fail(f"no right answer within {timeout:.0f} s: {error}")
            time.sleep(0.1)
        else:
            assert is_right(answer, known), f"wrong answer: {answer}"
            return time.monotonic() - start


def processes_of(server: Triton) -> set[int]:
    """Process ids of tritonserver and of the processes that run the models."""
    return servers_of(server) | set(model_processes_of(server).values())


def servers_of(server: Triton) -> set[int]:
    """Process id of tritonserver, unless it is dead."""
    return {
        pid
        for pid, command in processes_naming(f"--http-port={server.http_port}").items()
        if command.split()[0].endswith("/tritonserver")
    }


def model_processes_of(server: Triton) -> dict[str, int]:
    """Process ids by model, e.g. ``{"image_encoder": 4711}``."""
    found = processes_naming(f"reverse_image_search_{server.http_port}_")
    return {
        model.name: pid
        for pid, command in found.items()
        for model in contract.MODELS
        if f"{model.name}_0" in command.split()
    }


def run_as_nobody(command: list[str | Path], **kwargs) -> subprocess.CompletedProcess:
    """Run `command` without root's rights, which would let it write anywhere."""
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)
