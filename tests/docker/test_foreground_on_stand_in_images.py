"""Server and app in the foreground, beside other servers, and on a machine without a GPU: on a
real engine, with the stand-in images that the tests' names tell."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docker.containers import (
    APP_CONTAINER,
    GALLERY_SIZE,
    START,
    ContainerBuild,
    Foreground,
    Ports,
    assert_searches_right,
    docker,
    kill_tritonserver,
    left_behind,
)
from tests.running import run_script, start_server, stop_server, wait_until


@pytest.fixture
def ports() -> Ports:
    return Ports.pick()


@pytest.fixture
def variables(container_build: ContainerBuild, ports: Ports) -> dict[str, str]:
    return ports.variables | {"OUTPUT_DIR": str(container_build.output_dir), "RUNTIME": "docker"}


def test_foreground_server_in_stand_in_triton_image_survives_a_crash_and_obeys_ctrl_c(
    variables: dict[str, str],
    ports: Ports,
    container_build: ContainerBuild,
    tmp_path: Path,
    nothing_left: None,
) -> None:
    script = Foreground(START, tmp_path / "log", variables)
    script.wait_for("tritonserver: READY at")
    kill_tritonserver()
    script.wait_for("the server ended with exit code 137; starting it again in 1 s")
    script.wait_for("tritonserver: READY at", times=2)
    assert_searches_right(f"http://127.0.0.1:{ports.http}", container_build.output_dir)
    assert script.press_ctrl_c() == 0, script.output
    assert script.output.endswith("tritonserver: stopped\n")
    assert left_behind() == []


def test_server_in_stand_in_triton_image_gives_up_on_a_model_that_does_not_load(
    stand_in_images: None, variables: dict[str, str], tmp_path: Path, nothing_left: None
) -> None:
    model = tmp_path / "model_repo" / "image_encoder"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.pt").write_bytes(b"no TorchScript")
    (model / "config.pbtxt").write_text('platform: "pytorch_libtorch" nonsense')
    sums = tmp_path / "gallery" / "SHA256SUMS"
    sums.parent.mkdir()
    sums.write_text("")
    # The script's own check would find the damage first; the container is what is tested here.
    started = run_script(START, "--detach", **variables | {"OUTPUT_DIR": str(tmp_path)})
    assert started.returncode == 1


@pytest.mark.parametrize("option", ["--detach", None])
def test_taken_port_is_named_before_anything_starts(
    container_build: ContainerBuild,
    variables: dict[str, str],
    option: str | None,
    nothing_left: None,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(variables["TRITON_GRPC_PORT"])))
        taken.listen()
        started = run_script(START, *([option] if option else []), **variables)
    assert started.returncode == 1
    assert f"port {variables['TRITON_GRPC_PORT']} (TRITON_GRPC_PORT) is taken" in started.stderr
    assert "Traceback" not in started.stderr


def test_app_in_stand_in_python_image_finds_a_server_of_the_local_runtime(
    container_build: ContainerBuild,
    ports: Ports,
    page_text: Callable[[str, str], str],
    tmp_path: Path,
    nothing_left: None,
) -> None:
    local_server = start_server(container_build.output_dir)
    try:
        variables = local_server.environment | {"RUNTIME": "docker", "APP_PORT": str(ports.app)}
        script = Foreground("start_app.sh", tmp_path / "log", variables)
        wait_until(lambda: docker("ps", "--quiet", "--filter", f"name={APP_CONTAINER}"), "the app")
        text = page_text(f"http://127.0.0.1:{ports.app}", "similar images out of")
        assert f"Top 20 similar images out of {GALLERY_SIZE:,}" in text
        assert script.press_ctrl_c() == 0, script.output
    finally:
        stop_server(local_server)


def test_gpu_script_without_a_gpu_says_so(
    container_build: ContainerBuild, variables: dict[str, str], nothing_left: None
) -> None:
    started = run_script("start_inference_server_gpu.sh", **variables)
    assert started.returncode == 1
    assert "no NVIDIA GPU found" in started.stderr
    assert f"Use reverse_image_search/bin/{START}" in started.stderr


def test_gpu_script_on_a_real_engine_without_the_container_toolkit_says_what_is_missing(
    container_build: ContainerBuild,
    variables: dict[str, str],
    nvidia_smi_on_path: str,
    nothing_left: None,
) -> None:
    started = run_script("start_inference_server_gpu.sh", **variables, PATH=nvidia_smi_on_path)
    assert started.returncode == 1
    (sentence,) = started.stderr.splitlines()
    assert "Docker has no access to the GPU. Install the NVIDIA Container Toolkit" in sentence
    assert f"or use reverse_image_search/bin/{START}" in sentence
