"""The start scripts in the docker runtime, on a real engine.

What stands in: Debian's Python for the image of that name, and for NVIDIA's Triton image its
tritonserver from PyPI with this project's Python-based pytorch backend. Each test's name says so.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docker.containers import (
    APP_CONTAINER,
    BUILD_CONTAINER,
    GALLERY_SIZE,
    SERVER_CONTAINER,
    START,
    ContainerBuild,
    Foreground,
    Ports,
    assert_searches_right,
    docker,
    inspect,
    is_ready,
    kill_tritonserver,
    left_behind,
)
from tests.running import run_script, wait_until


def test_build_in_stand_in_python_image_writes_files_of_the_calling_user(
    container_build: ContainerBuild,
) -> None:
    written = list(container_build.output_dir.rglob("*"))
    assert {path.stat().st_uid for path in written} == {container_build.owner}
    models = sorted(
        str(path.relative_to(container_build.output_dir / "model_repo"))
        for path in (container_build.output_dir / "model_repo").rglob("*.*")
    )
    assert models == [
        "image_encoder/1/model.pt",
        "image_encoder/config.pbtxt",
        "vector_similarity/1/model.pt",
        "vector_similarity/config.pbtxt",
    ]
    assert "Runtime: docker (RUNTIME says so)" in container_build.output
    assert BUILD_CONTAINER not in left_behind()


def test_build_in_stand_in_python_image_passes_its_exit_code_and_message_on(
    stand_in_images: None, tmp_path: Path
) -> None:
    result = run_script(
        "build_models.sh", "--epochs", "none", RUNTIME="docker", OUTPUT_DIR=str(tmp_path)
    )
    assert result.returncode == 2
    assert "'none' is not a positive integer" in result.stderr


def test_app_image_on_stand_in_python_image_has_what_the_page_imports_and_no_more(
    app: str,
) -> None:
    program = (
        "import pathlib, pkgutil, reverse_image_search as package\n"
        "print(*sorted(path.name for path in pathlib.Path(package.__path__[0]).iterdir()))\n"
        "for module in pkgutil.walk_packages(package.__path__, 'reverse_image_search.'):\n"
        "    __import__(module.name)"
    )
    rooms, *warnings = docker("exec", APP_CONTAINER, "python3", "-c", program).splitlines()
    assert (
        rooms
        == "__init__.py app client contract.py first_frame.py gallery.py image_file.py layout.py"
    )
    assert all("No runtime found" in line for line in warnings)  # Streamlit's


def test_app_image_on_stand_in_python_image_carries_no_torch_and_no_root(app: str) -> None:
    missing = docker("exec", APP_CONTAINER, "python3", "-c", "import torch", check=False)
    assert "No module named 'torch'" in missing
    assert docker(
        "image", "inspect", "--format", "{{.Config.User}}", "reverse_image_search-app"
    ) == ("1000:1000")


@pytest.fixture(scope="module")
def ports() -> Ports:
    return Ports.pick()


@pytest.fixture(scope="module")
def variables(container_build: ContainerBuild, ports: Ports) -> dict[str, str]:
    """No RUNTIME among them: a Docker engine answers, so the scripts take docker."""
    return ports.variables | {"OUTPUT_DIR": str(container_build.output_dir)}


@pytest.fixture(scope="module")
def server(variables: dict[str, str], ports: Ports) -> Iterator[str]:
    """URL of a server that runs in the background; what its start printed is in `start_output`."""
    started = run_script(START, "--detach", **variables)
    assert started.returncode == 0, started.stdout + started.stderr
    assert "Runtime: docker (a Docker engine answers)" in started.stdout
    assert re.search(r"\| image_encoder +\| 1 +\| READY", started.stdout)
    assert re.search(r"\| vector_similarity +\| 1 +\| READY", started.stdout)
    yield f"http://127.0.0.1:{ports.http}"
    stopped = run_script(START, "--stop", **variables)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert left_behind() == []


@pytest.fixture(scope="module")
def app(
    server: str, variables: dict[str, str], ports: Ports, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """URL of the app, whose script runs until its Ctrl-C."""
    log = tmp_path_factory.mktemp("app") / "log"
    script = Foreground("start_app.sh", log, variables)
    script.wait_for("Open http://localhost")
    wait_until(lambda: docker("ps", "--quiet", "--filter", f"name={APP_CONTAINER}"), "the app")
    yield f"http://127.0.0.1:{ports.app}"
    assert script.press_ctrl_c() == 0, script.output
    assert APP_CONTAINER not in left_behind()


def test_server_in_stand_in_triton_image_answers_the_host(
    server: str, container_build: ContainerBuild
) -> None:
    assert_searches_right(server, container_build.output_dir)


def test_server_in_stand_in_triton_image_answers_the_app_container_by_name(app: str) -> None:
    program = (
        "import numpy, os\n"
        "from reverse_image_search.client import Client\n"
        "query = numpy.zeros((28, 28), 'uint8')\n"
        "print(Client(os.environ['TRITON_URL'], timeout=60).search([query]).ids.shape)"
    )
    assert docker("exec", APP_CONTAINER, "python3", "-c", program) == "(1, 100)"
    environment = inspect(APP_CONTAINER)["Config"]["Env"]
    assert "TRITON_URL=http://triton:8000" in environment


def test_browser_shows_results_from_stand_in_containers(
    app: str, page_text: Callable[[str, str], str]
) -> None:
    text = page_text(app, "similar images out of")
    assert f"Top 20 similar images out of {GALLERY_SIZE:,}" in text


@pytest.mark.parametrize("container", [SERVER_CONTAINER, APP_CONTAINER])
def test_health_checks_on_stand_in_images_ask_no_proxy(app: str, container: str) -> None:
    """Docker's configuration may give every container one."""
    no_proxy_there = "http://127.0.0.1:9"
    proxies = [f"--env={name}={no_proxy_there}" for name in ("HTTP_PROXY", "http_proxy")]
    kind, *check = inspect(container)["Config"]["Healthcheck"]["Test"]
    assert kind == "CMD"
    docker("exec", *proxies, container, *check)


@pytest.mark.parametrize("container", [SERVER_CONTAINER, APP_CONTAINER])
def test_containers_on_stand_in_images_are_closed(app: str, container: str) -> None:
    known = inspect(container)
    host = known["HostConfig"]
    assert known["Config"]["User"] == f"{os.geteuid() or 1000}:{os.getegid() or 1000}"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert not host["Privileged"]
    assert host["Init"]
    assert all(not mount["RW"] for mount in known["Mounts"] if mount["Type"] == "bind")
    published = [binding for bindings in host["PortBindings"].values() for binding in bindings]
    assert {binding["HostIp"] for binding in published} == {"127.0.0.1"}
    for path in ("/file", "/models/file"):
        assert docker("exec", container, "touch", path, check=False).startswith("touch: ")
    status = docker("exec", container, "cat", "/proc/1/status")
    assert re.search(r"CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"NoNewPrivs:\s+1$", status, re.MULTILINE)


def test_second_server_in_stand_in_triton_image_is_refused(
    server: str, variables: dict[str, str]
) -> None:
    second = run_script(START, "--detach", **variables | Ports.pick().variables)
    assert second.returncode == 1
    assert f"the container {SERVER_CONTAINER} is already running. Stop it with" in second.stderr
    assert is_ready(server)


def test_background_server_in_stand_in_triton_image_comes_back_after_a_crash(
    server: str, container_build: ContainerBuild
) -> None:
    restarts = inspect(SERVER_CONTAINER)["RestartCount"]
    kill_tritonserver()
    wait_until(
        lambda: inspect(SERVER_CONTAINER)["RestartCount"] > restarts, "restart by the engine"
    )
    wait_until(lambda: is_ready(server), "READY after a crash")
    assert_searches_right(server, container_build.output_dir)
