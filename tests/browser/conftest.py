"""A real Chromium, and the app as its start script runs it, before a real Triton."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from reverse_image_search.client import Client
from reverse_image_search.gallery import Gallery
from tests.running import (
    BIN,
    REPO_ROOT,
    Triton,
    free_ports,
    open_url,
    script_environment,
    wait_until,
)


@dataclass
class App:
    """A running app."""

    url: str
    output_dir: Path
    triton: Triton
    log_file: Path

    @property
    def log(self) -> str:
        """What it printed so far."""
        return self.log_file.read_text()


@contextmanager
def running_app(
    triton: Triton, output_dir: Path, folder: Path, figure: Callable[[str], None]
) -> Iterator[App]:
    (port,) = free_ports(1)
    log_file = folder / f"app_{port}.log"
    variables = triton.environment | {"OUTPUT_DIR": str(output_dir), "APP_PORT": str(port)}
    started = time.monotonic()
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [BIN / "start_app.sh"],
            cwd=REPO_ROOT,
            env=script_environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    app = App(f"http://127.0.0.1:{port}/", output_dir, triton, log_file)
    try:
        wait_until(lambda: process.poll() is not None or _answers(app.url), "the app answers")
        assert process.poll() is None, app.log
        figure(f"app: answers {time.monotonic() - started:.1f} s after its start")
        yield app
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        with open_url(f"{url}_stcore/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="package")
def app(triton: Triton, tmp_path_factory: pytest.TempPathFactory, figure) -> Iterator[App]:
    """The app before the small build's server, shared by all tests."""
    with running_app(triton, triton.output_dir, tmp_path_factory.mktemp("app"), figure) as app:
        yield app


@pytest.fixture
def start_app(tmp_path: Path, figure) -> Iterator[Callable[[Triton, Path], App]]:
    """``start_app(triton, output_dir)``: a further app, for a test that breaks things."""
    running = []

    def start(triton: Triton, output_dir: Path) -> App:
        running.append(running_app(triton, output_dir, tmp_path, figure))
        return running[-1].__enter__()

    yield start
    for each in running:
        each.__exit__(None, None, None)


@pytest.fixture
def open_page(browser, app: App) -> Iterator[Callable]:
    """``open_page(address="", app=app, **context_options)``: the app in a session of its own.

    Afterwards no page's own scripts may have met an error.
    """
    from tests.browser.app_page import open_app

    pages = []

    def open_it(address: str = "", app: App = app, **context_options):
        page = open_app(browser, app.url + address, **context_options)
        pages.append(page)
        return page

    yield open_it
    for page in pages:
        page.page.context.close()
    assert [page.errors for page in pages if page.errors] == []


@pytest.fixture(scope="package")
def found_by_server(client: Client, gallery: Gallery) -> Callable:
    """``found_by_server(pixels, count)``: ids and scores, asked for without the app."""

    def search(pixels: np.ndarray, count: int = 20) -> tuple[list[int], list[float]]:
        neighbors = client.search([pixels])
        return neighbors.ids[0, :count].tolist(), neighbors.scores[0, :count].tolist()

    return search
