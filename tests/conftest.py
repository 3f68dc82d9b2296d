"""What the suites share: real data, a small real build of it, and a real Triton that serves it.

Nothing here is made before a test asks for it, and each is made once for the whole run.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from reverse_image_search.client import Client
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import gallery_file
from tests.milvus_server import MilvusServer, milvus_server
from tests.running import (
    BUILD_TIMEOUT,
    REPO_ROOT,
    Triton,
    free_ports,
    skip_or_fail,
    start_server,
    stop_server,
)

# A process that is forked while gRPC polls may die of gRPC's handling of forks before it becomes
# another program, as pexpect's do. Read when gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

# Three passes: after one, the embeddings lie so close that many neighbors are ties.
SMALL_BUILD = ("--limit", "3000", "--epochs", "3")
PACKAGE = REPO_ROOT / "reverse_image_search"
# As root in a container; and nothing of the browser's own may reach for the network.
CHROMIUM_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a camera that shows a moving test pattern
    "--use-fake-ui-for-media-stream",
]
# The front end: a change there leaves the build as it is. Whatever is not named here counts.
NOT_IN_BUILD = {"app", "client", "terminal", "benchmark", "bin", "deploy"}


# The longest first and the shortest tests last, so that parallel workers end together.
SUITES = ("docker", "faults", "browser", "docs", "scripts", "integration", "unit")

_figures: list[str] = []


@pytest.fixture(scope="session")
def figure() -> Callable[[str], None]:
    """``figure("repaint: 180 ms")``: a measured figure, printed at the end of the run."""
    return _figures.append


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each suite together in its random order, so that its servers are started once."""
    items.sort(key=lambda item: SUITES.index(item.path.relative_to(REPO_ROOT / "tests").parts[0]))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """A parallel worker takes a file at a time, and all of docker, whose containers have names."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrDocker(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            docker = "tests/docker/"
            return docker if nodeid.startswith(docker) else super()._split_scope(nodeid)

    return ByFileOrDocker(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a parallel worker's figures to the process that prints them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["figures"] = _figures


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """Take the figures of a parallel worker that has ended."""
    _figures.extend(getattr(node, "workeroutput", {}).get("figures", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that the tests measured."""
    if _figures:
        terminalreporter.section("figures")
    for line in _figures:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the dataset: TEST_DATA_DIR, or data/ as in a build."""
    return Path(os.environ.get("TEST_DATA_DIR", REPO_ROOT / "data")).resolve()


@pytest.fixture(scope="session")
def fashion_mnist(data_dir: Path):
    """All of Fashion-MNIST, fetched by the project's own loader."""
    from reverse_image_search.datasets import DatasetError
    from reverse_image_search.datasets.fashion_mnist import load_fashion_mnist

    try:
        return load_fashion_mnist(data_dir)
    except DatasetError as error:
        skip_or_fail(str(error))


@pytest.fixture(scope="session")
def small_build(
    fashion_mnist,
    data_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Path:
    """Folder with the model_repo/ and gallery/ of a build of 3,000 images; read only."""
    # A minute of training serves all runs until a file changes that may have a part in it.
    kept = pytestconfig.cache.mkdir("small_build") / _fingerprint_of_build()
    output_dir = tmp_path_factory.mktemp("small_build")
    if kept.exists():
        shutil.copytree(kept, output_dir, dirs_exist_ok=True)
        return output_dir
    command = [sys.executable, "-m", "reverse_image_search.build_models", *SMALL_BUILD]
    result = subprocess.run(
        [*command, "--data-dir", data_dir, "--output-dir", output_dir],
        cwd=REPO_ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    part = kept.with_suffix(f".{os.getpid()}")
    shutil.copytree(output_dir, part)
    with contextlib.suppress(OSError):  # another run was faster
        part.rename(kept)
    for old in kept.parent.iterdir():
        if old.stat().st_mtime < time.time() - 24 * 3600:
            shutil.rmtree(old, ignore_errors=True)
    return output_dir


def _fingerprint_of_build() -> str:
    """Of all that a build is made of: its options, the packages and the project's modules."""
    digest = hashlib.sha256(repr(SMALL_BUILD).encode())
    for path in (REPO_ROOT / "requirements.txt", *sorted(PACKAGE.rglob("*.py"))):
        if not NOT_IN_BUILD.intersection(path.relative_to(REPO_ROOT).parts):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.fixture(scope="session")
def copy_repository() -> Callable[..., Path]:
    """``copy_repository(folder)``: what a user clones, with a .venv that has the packages."""

    def copy(folder: Path, python: str = sys.executable) -> Path:
        folder.mkdir(parents=True)
        for name in ("reverse_image_search", ".streamlit"):
            shutil.copytree(
                REPO_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in (".env", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPO_ROOT / name, folder)
        for path in REPO_ROOT.glob("requirements*.txt"):
            shutil.copy(path, folder)
        venv = folder / ".venv"
        subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
        packages = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        (packages / "clone.pth").write_text(f"{folder}\n")
        shared = [path for path in map(Path, sys.path) if path.name == "site-packages"]
        (packages / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
        (folder / ".triton").mkdir()
        for wheel in (REPO_ROOT / ".triton").glob("nvidia-pytriton-*"):
            (folder / ".triton" / wheel.name).symlink_to(wheel.resolve())
        return folder

    return copy


@pytest.fixture(scope="session")
def triton(small_build: Path) -> Iterator[Triton]:
    """A real server on the small build, shared by all tests: leave it as you found it."""
    server = start_server(small_build)
    yield server
    stop_server(server)


@pytest.fixture
def start_triton() -> Iterator[Callable[..., Triton]]:
    """``start_triton(output_dir, *arguments)``: a further server of the test's own."""
    servers = []

    def start(output_dir: Path, *arguments: str) -> Triton:
        servers.append(start_server(output_dir, *arguments))
        return servers[-1]

    yield start
    for server in servers:
        stop_server(server)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """``free_port()``: a TCP port of 127.0.0.1 that nothing listens on."""
    return lambda: free_ports(1)[0]


@pytest.fixture(scope="session")
def client(triton: Triton) -> Client:
    """The project's client, connected to the small build's server."""
    return Client(triton.url, timeout=60)


@pytest.fixture(scope="session")
def gallery(small_build: Path) -> Gallery:
    """The small build's gallery."""
    return Gallery(gallery_file(small_build))


@pytest.fixture(scope="session")
def gallery_pixels(gallery: Gallery) -> np.ndarray:
    """(N, 28, 28) uint8: the gallery's images. Their ids are 0 to N - 1."""
    return np.stack([image.pixels for image in gallery.images(gallery.ids())])


@pytest.fixture(scope="session")
def query_pixels(gallery: Gallery) -> np.ndarray:
    """(n, 28, 28) uint8: the example queries. Their ids are 0 to n - 1."""
    return np.stack([image.pixels for image in gallery.queries(gallery.query_ids())])


@pytest.fixture(scope="session")
def gallery_embeddings(client: Client, gallery_pixels: np.ndarray) -> np.ndarray:
    """(N, D) float32 embeddings of the gallery, as the served encoder gives them: for oracles."""
    return client.embed(gallery_pixels)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Headless Chromium; `new_context()` is a visitor of his own.

    One for all suites: Playwright's synchronous interface runs once in a process.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        skip_or_fail("playwright is not installed: pip install -r requirements-test.txt")
    executable = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not executable:
        skip_or_fail("there is no chromium: apt-get install chromium, or set CHROMIUM to its path")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    """A running Milvus server, which MILVUS_URI names."""
    server = milvus_server(tmp_path_factory.mktemp("milvus") / "data")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILVUS_URI", server.uri)
        yield server
    server.close()
