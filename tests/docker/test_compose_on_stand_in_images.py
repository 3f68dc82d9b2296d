"""docker-compose.yml as it is, on a real engine, with the stand-in images that the tests' names
tell. Runs with Compose v1 (docker-compose) and v2 (docker compose), whichever are there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker.containers import (
    APP_CONTAINER,
    GALLERY_SIZE,
    SERVER_CONTAINER,
    Ports,
    assert_searches_right,
    docker,
    inspect,
    left_behind,
)
from tests.running import BUILD_TIMEOUT, REPO_ROOT, script_environment, skip_or_fail

PROJECT = "reverse_image_search_test"  # apart from a user's own `docker compose up`


class Compose:
    """Compose, run in the repository with settings of the test's own."""

    def __init__(self, command: list[str], **variables: str) -> None:
        self._command = command
        # The classic builder, as everywhere here: BuildKit does not see its cached layers.
        self._variables = variables | {"COMPOSE_PROJECT_NAME": PROJECT, "DOCKER_BUILDKIT": "0"}

    def __call__(self, *arguments: str, check: bool = True) -> str:
        result = subprocess.run(
            [*self._command, *arguments], cwd=REPO_ROOT, stdin=subprocess.DEVNULL,
            env=script_environment(**self._variables), timeout=BUILD_TIMEOUT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert result.returncode == 0 or not check, result.stdout
        return result.stdout


def compose_commands() -> list[list[str]]:
    plugin = ["docker", "compose"]
    has_plugin = (
        shutil.which("docker")
        and not subprocess.run([*plugin, "version"], capture_output=True).returncode
    )
    return [["docker-compose"]] * bool(shutil.which("docker-compose")) + [plugin] * bool(has_plugin)


@pytest.fixture(
    scope="module", params=compose_commands() or [None], ids=lambda c: "-".join(c or [])
)
def compose(
    request: pytest.FixtureRequest, stand_in_images: None, ports: Ports, output_dir: Path
) -> Iterator[Compose]:
    if request.param is None:
        skip_or_fail("Compose; tests/docker/install_engine.sh installs it")
    user = f"{os.geteuid() or 1000}:{os.getegid() or 1000}"
    run = Compose(request.param, **ports.variables, OUTPUT_DIR=str(output_dir), CONTAINER_USER=user)
    yield run
    run("--profile", "cpu", "--profile", "gpu", "down", "--timeout", "20", check=False)


@pytest.fixture(scope="module")
def ports() -> Ports:
    return Ports.pick()


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compose")
    if os.geteuid() == 0:
        os.chown(folder, 1000, 1000)
    return folder


@pytest.fixture(scope="module")
def built(compose: Compose, fashion_mnist: object, data_dir: Path) -> str:
    """What `docker compose run build` printed."""
    return compose(
        "run", "--rm", "--volume", f"{data_dir}:/data:ro", "build",
        "--limit", str(GALLERY_SIZE), "--epochs", "1", "--data-dir", "/data",
    )  # fmt: skip


def test_compose_build_in_stand_in_python_image_writes_files_of_the_named_user(
    built: str, output_dir: Path
) -> None:
    assert "Published to /output" in built
    owners = {path.stat().st_uid for path in output_dir.rglob("*")}
    assert owners == {os.geteuid() or 1000}


def test_compose_gpu_profile_makes_the_gpu_server_and_no_other(
    compose: Compose, built: str
) -> None:
    compose("--profile", "gpu", "up", "--no-start")
    try:
        labels = inspect(SERVER_CONTAINER)["Config"]["Labels"]
        assert labels["com.docker.compose.service"] == "triton-gpu"
        (request,) = inspect(SERVER_CONTAINER)["HostConfig"]["DeviceRequests"]
        assert (request["Driver"], request["DeviceIDs"]) == ("nvidia", ["all"])
        assert request["Capabilities"] == [["gpu"]]
        aliases = [
            alias
            for network in inspect(SERVER_CONTAINER)["NetworkSettings"]["Networks"].values()
            for alias in network["Aliases"]
        ]
        assert "triton" in aliases
    finally:
        compose("--profile", "gpu", "down")


def test_compose_never_has_both_servers(compose: Compose, built: str) -> None:
    both = compose("--profile", "cpu", "--profile", "gpu", "up", "--no-start", check=False)
    try:
        assert re.search(r"reverse_image_search_(triton|app)\b.* already in use", both)
    finally:
        compose("--profile", "cpu", "--profile", "gpu", "down")


def test_compose_up_on_stand_in_images_searches_from_host_browser_and_app_container(
    compose: Compose,
    built: str,
    ports: Ports,
    output_dir: Path,
    page_text: Callable[[str, str], str],
) -> None:
    compose("up", "--detach")
    try:
        # The app waited for it.
        assert inspect(SERVER_CONTAINER)["State"]["Health"]["Status"] == "healthy"
        assert_searches_right(f"http://127.0.0.1:{ports.http}", output_dir)
        text = page_text(f"http://127.0.0.1:{ports.app}", "similar images out of")
        assert f"Top 20 similar images out of {GALLERY_SIZE:,}" in text
        program = (
            "import os\n"
            "from reverse_image_search.client.client import Client\n"
            "print(Client(os.environ['TRITON_URL']).is_ready())"
        )
        assert docker("exec", APP_CONTAINER, "python3", "-c", program) == "True"
        for container in (SERVER_CONTAINER, APP_CONTAINER):
            assert_closed(container)
    finally:
        compose("down", "--timeout", "20")
    assert left_behind() == []


def assert_closed(container: str) -> None:
    """No root, no capabilities, nothing writable, nothing open to other machines."""
    known = inspect(container)
    host = known["HostConfig"]
    assert known["Config"]["User"] == f"{os.geteuid() or 1000}:{os.getegid() or 1000}"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert all(not mount["RW"] for mount in known["Mounts"] if mount["Type"] == "bind")
    published = json.dumps(host["PortBindings"])
    assert published.count('"HostIp": "127.0.0.1"') == published.count("HostPort")
