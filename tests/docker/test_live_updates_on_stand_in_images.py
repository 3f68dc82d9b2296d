"""A gallery that changes while a container serves it."""

from __future__ import annotations

import http.client
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reverse_image_search import contract
from reverse_image_search.benchmark.live_updates import Load, run_updates
from reverse_image_search.benchmark.updated_build import UpdatedBuild
from reverse_image_search.serving.live import wait_until_served
from tests.docker.containers import SERVER_CONTAINER, START, Ports, docker
from tests.running import run_script, wait_until

UPDATES = int(os.environ.get("FAULTS_UPDATES", "4"))


@pytest.fixture
def new_build() -> Iterator[Callable[[], UpdatedBuild]]:
    """``new_build()``: a synthetic build where the container's user can read it."""
    folders = []

    def make() -> UpdatedBuild:
        folders.append(Path(tempfile.mkdtemp(prefix="reverse_image_search_")))
        folders[-1].chmod(0o755)
        return UpdatedBuild(folders[-1], image_count=2000)

    yield make
    for folder in folders:
        shutil.rmtree(folder)


def model_processes() -> int:
    running = docker("top", SERVER_CONTAINER, "-eo", "pid,args")
    return running.count("triton_python_backend_stub")


def deaths_of_triton() -> int:
    """How often Docker has started the container again."""
    return int(docker("container", "inspect", "--format", "{{.RestartCount}}", SERVER_CONTAINER))


def test_updates_rebuild_and_roll_back_in_stand_in_triton_image(
    stand_in_images: None, nothing_left: None, new_build, figure
) -> None:
    if update_and_roll_back(new_build()):
        return
    figure("live updates: Triton 2.51 itself died on a busy machine, tried again")
    assert update_and_roll_back(new_build()), "Triton died again"


def update_and_roll_back(build: UpdatedBuild) -> bool:
    """False where Triton died: its Python backend, which stands in for the image's, may crash."""
    ports = Ports.pick()
    variables = ports.variables | {"OUTPUT_DIR": str(build.output_dir), "RUNTIME": "docker"}
    url = f"http://127.0.0.1:{ports.http}"
    started = run_script(START, "--detach", "--ensemble", **variables)
    assert started.returncode == 0, started.stdout + started.stderr
    try:
        report = run_updates(build, url, UPDATES, clients=16)
        report.print()
        assert not report.problems
        wait_until(lambda: model_processes() == len(contract.MODELS), "old versions unloaded", 60)

        with Load(build, url, clients=4, like_the_page=True) as load:
            build.rebuild()
            assert wait_until_served(build.output_dir, url) is not None
            build.took_effect()
            build.returned_to(len(build.history) - 2)
            result = run_script(START, "--previous", **variables)
            assert result.returncode == 0, result.stderr
            assert "took it over" in result.stdout
            build.took_effect()
        assert not load.problems

        connection = http.client.HTTPConnection("127.0.0.1", ports.http, timeout=10)
        for action in ("load", "unload"):
            path = f"/v2/repository/models/{contract.VECTOR_SIMILARITY.name}/{action}"
            connection.request("POST", path, "{}")
            response = connection.getresponse()
            assert b"not allowed if polling is enabled" in response.read()
            assert response.status >= 400
        return True
    except AssertionError:
        if deaths_of_triton():
            return False
        raise
    finally:
        run_script(START, "--stop", **variables)
