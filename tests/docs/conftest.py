"""A clone with a small build and a running server, for the code of the documentation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reverse_image_search.layout import BUILD_COMMAND
from tests.conftest import SMALL_BUILD
from tests.docs.pages import Page
from tests.docs.terminals import Terminals
from tests.running import (
    REPO_ROOT,
    free_ports,
    kill_server,
    script_environment,
    skip_or_fail,
)

COURSE = REPO_ROOT / "doc" / "tutorial"
SERVER, EXPERIMENTS = ("8000", "8001", "8002"), ("8100", "8101", "8102")
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin"
BALANCER = ("8200", "8201")  # chapter 10
# The block of the index that the fixture `small_build` has run.
BUILD_BLOCK = " ".join([BUILD_COMMAND, *SMALL_BUILD])


@pytest.fixture(scope="session")
def ports() -> dict[str, str]:
    """A free port for each one that the course names, in the same order, as its code sorts them."""
    names = (*SERVER, *EXPERIMENTS, *BALANCER)
    return dict(zip(names, map(str, sorted(free_ports(len(names)))), strict=True))


@pytest.fixture(scope="session")
def make_clone(
    copy_repository: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """``make_clone(name)``: a folder that a reader has cloned; the packages are installed."""

    def make(name: str) -> Path:
        clone = copy_repository(tmp_path_factory.mktemp(name) / "clone")
        (clone / "data").symlink_to(os.environ.get("TEST_DATA_DIR", REPO_ROOT / "data"))
        return clone

    return make


@pytest.fixture(scope="session")
def environment(ports: dict[str, str]) -> dict[str, str]:
    """Of a reader's terminal: the local runtime, on free ports."""
    names = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT")
    variables = script_environment(
        **{name: ports[port] for name, port in zip(names, SERVER, strict=True)}, RUNTIME="local"
    )
    # The code is for a machine whose address nobody asks a proxy for.
    return {k: v for k, v in variables.items() if "proxy" not in k.lower()}


@pytest.fixture(scope="session")
def run_page(
    small_build: Path,
    make_clone: Callable[[str], Path],
    environment: dict[str, str],
    ports: dict[str, str],
    figure: Callable[[str], None],
) -> Iterator[Callable[[Path], None]]:
    """``run_page(path)``: type a page's code into fresh terminals; the course's index was before.

    The index starts the server that all chapters use.
    """
    clone = make_clone("course")
    shutil.copytree(small_build, clone, dirs_exist_ok=True)

    def run(path: Path) -> None:
        if "haproxy -D" in path.read_text() and not shutil.which("haproxy", path=SYSTEM_PATH):
            skip_or_fail("there is no haproxy: apt-get install haproxy")
        terminals = Terminals(clone, environment)
        page = Page(path, terminals, ports, {BUILD_BLOCK})
        try:
            page.run()
        except BaseException:
            kill_server(ports[EXPERIMENTS[0]])  # the page did not come to stopping its own
            raise
        finally:
            terminals.close()
        name = path.relative_to(REPO_ROOT)
        figure(
            f"{name}: {page.executed} blocks run, {page.not_executed} that need more than CI has"
        )

    try:
        run(COURSE / "README.md")
        yield run
    finally:
        for server in (SERVER, EXPERIMENTS):
            kill_server(ports[server[0]])
