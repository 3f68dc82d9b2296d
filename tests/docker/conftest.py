"""A real Docker engine, stand-ins for the base images that cannot be pulled, and a build made in
a container. The scripts and docker-compose.yml run unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker.containers import (
    APP_CONTAINER,
    BUILD_CONTAINER,
    GALLERY_SIZE,
    NETWORK,
    SERVER_CONTAINER,
    ContainerBuild,
    docker,
    left_behind,
)
from tests.running import (
    BIN,
    BUILD_TIMEOUT,
    script_environment,
    skip_or_fail,
    wait_until,
)

HERE = Path(__file__).resolve().parent
OUR_IMAGES = ("reverse_image_search-app", "reverse_image_search-build")

SMALL_BUILD = ("--limit", str(GALLERY_SIZE), "--epochs", "1")
CALLER = 12345  # a user id that is not root's, nor the images' own 1000
IMAGES_TIMEOUT = 900  # seconds


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine that answers."""
    if shutil.which("docker") is None or docker_info() != 0:
        skip_or_fail("a Docker engine; tests/docker/install_engine.sh installs one")


def docker_info() -> int:
    return subprocess.run(["docker", "info"], capture_output=True).returncode


@pytest.fixture(scope="session")
def stand_in_images(engine: None) -> Iterator[None]:
    """Both base images under their real names; taken off again at the end."""
    command = [HERE / "make_stand_in_images.sh"]
    made = subprocess.run(command, capture_output=True, text=True, timeout=IMAGES_TIMEOUT)
    if made.returncode != 0:
        skip_or_fail(f"stand-ins for the base images:\n{made.stdout}{made.stderr}")
    print(made.stdout)
    yield
    # What was built on a stand-in must not pass for the real thing later.
    for image in OUR_IMAGES:
        if "reverse_image_search.stand_in" in docker("image", "inspect", image, check=False):
            docker("rmi", "--no-prune", image)
    subprocess.run([*command, "--remove"], check=True)


@pytest.fixture(scope="session")
def caller() -> dict:
    """`subprocess` arguments that run a command as an ordinary user who may use the engine."""
    if os.geteuid() != 0:
        return {}
    socket_group = Path("/var/run/docker.sock").stat().st_gid
    return {"user": CALLER, "group": CALLER, "extra_groups": [socket_group]}


@pytest.fixture(scope="session")
def container_build(
    stand_in_images: None, fashion_mnist: object, data_dir: Path, caller: dict
) -> Iterator[ContainerBuild]:
    """A small build, made by an ordinary user."""
    owner = caller.get("user", os.geteuid())
    home = Path(tempfile.mkdtemp(prefix="reverse_image_search_"))
    home.chmod(0o755)
    os.chown(home, owner, caller.get("group", os.getegid()))
    result = subprocess.run(
        [BIN / "build_models.sh", *SMALL_BUILD, "--data-dir", data_dir],
        env=script_environment(RUNTIME="docker", OUTPUT_DIR=str(home / "out"), HOME=str(home)),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_TIMEOUT, **caller,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    yield ContainerBuild(home / "out", owner, result.stdout + result.stderr)
    shutil.rmtree(home)


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Fails when the test leaves a container or a network of this project behind."""
    assert left_behind() == [], "left by an earlier run: remove it first"
    yield
    left = left_behind()
    for container in (SERVER_CONTAINER, APP_CONTAINER, BUILD_CONTAINER):
        if container in left:
            print(docker("logs", "--tail", "40", container, check=False))
            docker("rm", "--force", container)
    docker("network", "rm", NETWORK, check=False)
    assert left == []


def answers(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="session")
def page_text(browser) -> Callable[[str, str], str]:
    """``page_text(url, wanted)``: the text of a page once `wanted` stands in it."""
    from tests.browser.app_page import open_app  # needs playwright, as `browser` does

    def read(url: str, wanted: str) -> str:
        wait_until(lambda: answers(f"{url}/_stcore/health"), f"an app at {url}")
        page = open_app(browser, url).page
        try:
            page.get_by_text(wanted).first.wait_for(timeout=60_000)
            return page.inner_text("body")
        finally:
            page.context.close()

    return read


@pytest.fixture
def nvidia_smi_on_path(tmp_path: Path) -> str:
    """A PATH whose nvidia-smi lists one GPU, for machines that have none."""
    program = tmp_path / "path" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA Test (UUID: GPU-0)'\n")
    program.chmod(0o755)
    return f"{program.parent}:{os.environ['PATH']}"
