"""Server and app in the foreground, beside other servers, and on a machine without a GPU: on a
real engine, with the stand-in images that the tests' names tell."""

from __future__ import annotations

import hashlib
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docker.containers import (
    GALLERY_SIZE,
    START,
    ContainerBuild,
    Foreground,
    Ports,
    assert_searches_right,
    is_ready,
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
    script.wait_for("tritonserver: ended; Docker starts it again")
    wait_until(lambda: is_ready(f"http://127.0.0.1:{ports.http}"), "READY after a crash")
    assert_searches_right(f"http://127.0.0.1:{ports.http}", container_build.output_dir)
    assert script.press_ctrl_c() == 0, script.output
    assert script.output.endswith("tritonserver: stopped\n")
    assert left_behind() == []


@pytest.fixture
def broken_build(container_build: ContainerBuild, tmp_path: Path) -> Path:
    """A build whose files pass for what the build wrote, but whose configurations are nonsense."""
    output_dir = tmp_path / "broken"
    shutil.copytree(container_build.output_dir, output_dir)
    sums = output_dir / "gallery" / "SHA256SUMS"
    for config in (output_dir / "model_repo").glob("*/config.pbtxt"):
        before = hashlib.sha256(config.read_bytes()).hexdigest()
        config.write_text("nonsense")
        after = hashlib.sha256(config.read_bytes()).hexdigest()
        sums.write_text(sums.read_text().replace(before, after))
    return output_dir


@pytest.mark.parametrize("option", ["--detach", None])
def test_server_in_stand_in_triton_image_that_never_gets_ready_is_given_up(
    container_build: ContainerBuild,
    variables: dict[str, str],
    option: str | None,
    broken_build: Path,
    nothing_left: None,
) -> None:
    arguments = [option] if option else []
    started = run_script(START, *arguments, **variables | {"OUTPUT_DIR": str(broken_build)})
    output = started.stdout + started.stderr
    assert started.returncode == 1, output
    assert "before it was ready" in started.stderr
    assert "image_encoder" in output, "the server's own log says which model"
    assert left_behind() == []


@pytest.mark.parametrize("script", [START, "start_app.sh"])
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_script_on_stand_in_images_that_loses_its_terminal_leaves_nothing(
    script: str,
    number: signal.Signals,
    variables: dict[str, str],
    tmp_path: Path,
    nothing_left: None,
) -> None:
    running = Foreground(script, tmp_path / "log", variables)
    running.wait_for("Ctrl-C stops")
    running.signal(number)
    assert left_behind() == [], running.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_interrupted_build_on_stand_in_images_publishes_and_leaves_nothing(
    number: signal.Signals,
    container_build: ContainerBuild,
    data_dir: Path,
    tmp_path: Path,
    nothing_left: None,
) -> None:
    variables = {"OUTPUT_DIR": str(tmp_path / "out"), "RUNTIME": "docker"}
    options = ("--limit", "2000", "--epochs", "1000", "--data-dir", str(data_dir))
    build = Foreground("build_models.sh", tmp_path / "log", variables, *options)
    build.wait_for("encoder ...")
    assert build.signal(number) == 130, build.output
    assert not (tmp_path / "out" / "model_repo").exists()
    assert left_behind() == []


def test_stop_without_a_server_container_says_so(engine: None, nothing_left: None) -> None:
    stopped = run_script(START, "--stop", RUNTIME="docker")
    assert stopped.returncode == 0
    assert "No server container of this project is running" in stopped.stdout


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
    variables = local_server.environment | {"RUNTIME": "docker", "APP_PORT": str(ports.app)}
    script = Foreground("start_app.sh", tmp_path / "log", variables)
    try:
        script.wait_for("Open http://localhost")
        text = page_text(f"http://127.0.0.1:{ports.app}", "similar images out of")
        assert f"Top 20 similar images out of {GALLERY_SIZE:,}" in text
    finally:
        code = script.press_ctrl_c()
        stop_server(local_server)
    assert code == 0, script.output


def test_demo_on_stand_in_images_serves_the_page_and_ctrl_c_leaves_nothing(
    container_build: ContainerBuild,
    variables: dict[str, str],
    ports: Ports,
    page_text: Callable[[str, str], str],
    tmp_path: Path,
    nothing_left: None,
) -> None:
    script = Foreground("demo.sh", tmp_path / "log", variables)
    script.wait_for(f"Open http://localhost:{ports.app}/")
    text = page_text(f"http://127.0.0.1:{ports.app}", "similar images out of")
    assert f"Top 20 similar images out of {GALLERY_SIZE:,}" in text
    assert script.press_ctrl_c() == 130, script.output
    assert left_behind() == [], script.output


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
