"""What the scripts ask of Docker where none can run it: with a GPU, without an image, with other
addresses. A fake `docker` on the PATH records its command lines and answers as told."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.running import free_ports, run_script

# Records each call, then answers: an image is there if it is listed in images, a command fails
# with the text in failures/<command>.
FAKE_DOCKER = """#!/usr/bin/env python3
import json, pathlib, sys
home = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
with (home / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
failure = home / "failures" / arguments[0]
if failure.exists():
    sys.exit(failure.read_text())
if arguments[:2] == ["image", "inspect"]:
    sys.exit(not (home / "images").exists())
if arguments[:2] in (["container", "inspect"], ["network", "inspect"]):
    sys.exit(1)
if arguments[0] == "run" and "tritonserver" in arguments:
    sys.exit(125)  # as when the engine cannot start it, so that the script ends
"""

GPU_SCRIPT = "start_inference_server_gpu.sh"
TRITON_IMAGE = "nvcr.io/nvidia/tritonserver:26.11-py3"


class FakeDocker:
    """The fake, and the scripts run with it."""

    def __init__(self, folder: Path, output_dir: Path) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "failures").mkdir()
        self._write("docker", FAKE_DOCKER)
        self._write("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA Test (UUID: GPU-0)'\n")
        self.has_images(True)
        names = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "APP_PORT")
        self.variables = dict(zip(names, map(str, free_ports(4)), strict=True))
        self.output_dir = output_dir

    def _write(self, name: str, text: str) -> None:
        (self._folder / name).write_text(text)
        (self._folder / name).chmod(0o755)

    def has_images(self, has: bool) -> None:
        if has:
            (self._folder / "images").touch()
        else:
            (self._folder / "images").unlink()

    def fails(self, command: str, message: str) -> None:
        (self._folder / "failures" / command).write_text(message)

    def run_script(
        self, name: str, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess:
        settings = self.variables | {"RUNTIME": "docker", "OUTPUT_DIR": str(self.output_dir)}
        path = f"{self._folder}:{os.environ['PATH']}"
        return run_script(name, *arguments, **settings | variables, PATH=path, timeout=120)

    def calls(self, command: str) -> list[list[str]]:
        """The recorded command lines ``docker command ...``, without `docker`."""
        lines = (self._folder / "calls").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[0] == command]


@pytest.fixture
def fake_docker(tmp_path: Path) -> FakeDocker:
    output_dir = tmp_path / "build"
    model = output_dir / "model_repo" / "image_encoder" / "1" / "model.pt"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"any")
    sums = output_dir / "gallery" / "SHA256SUMS"
    sums.parent.mkdir()
    digest = hashlib.sha256(b"any").hexdigest()
    sums.write_text(f"{digest}  model_repo/image_encoder/1/model.pt\n")
    return FakeDocker(tmp_path / "path", output_dir)


def test_gpu_command_line(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script(GPU_SCRIPT)
    assert result.returncode == 1
    assert "Docker could not start the server's container" in result.stderr
    probe, serve = fake_docker.calls("run")
    assert probe == ["run", "--rm", "--gpus", "all", "--entrypoint", "true", TRITON_IMAGE]

    ports = fake_docker.variables
    user = f"{os.geteuid() or 1000}:{os.getegid() or 1000}"
    assert serve == [
        "run",
        *("--name", "reverse_image_search_triton"),
        "--init",
        *("--user", user),
        *("--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges"),
        *("--env", "HOME=/tmp"),
        *("--env", "USER=user"),
        *("--read-only", "--tmpfs", "/tmp"),
        *("--network", "reverse_image_search"),
        *("--network-alias", "triton"),
        *("--publish", f"127.0.0.1:{ports['TRITON_HTTP_PORT']}:8000"),
        *("--publish", f"127.0.0.1:{ports['TRITON_GRPC_PORT']}:8001"),
        *("--publish", f"127.0.0.1:{ports['TRITON_METRICS_PORT']}:8002"),
        *("--shm-size", "1g"),
        "--mount",
        f"type=bind,source={fake_docker.output_dir}/model_repo,target=/models,readonly",
        *("--gpus", "all"),
        "--rm",
        TRITON_IMAGE,
        "tritonserver",
        "--model-repository=/models",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-timeout-secs=5",
    ]


def test_gpus_picks_devices(fake_docker: FakeDocker) -> None:
    fake_docker.run_script(GPU_SCRIPT, GPUS="device=0,2")
    for call in fake_docker.calls("run"):
        assert call[call.index("--gpus") + 1] == "device=0,2"


def test_cpu_command_line_asks_for_no_gpu(fake_docker: FakeDocker) -> None:
    fake_docker.run_script("start_inference_server_cpu.sh")
    assert fake_docker.calls("run")
    assert all("--gpus" not in call for call in fake_docker.calls("run"))


def test_ensemble_is_a_second_repository(fake_docker: FakeDocker) -> None:
    (fake_docker.output_dir / "ensemble_repo").mkdir()
    fake_docker.run_script("start_inference_server_cpu.sh", "--ensemble")
    call = fake_docker.calls("run")[0]
    source = f"{fake_docker.output_dir}/ensemble_repo"
    assert f"type=bind,source={source},target=/ensemble_repo,readonly" in call
    assert "--model-repository=/ensemble_repo" in call


def test_other_bind_address_is_published_and_said(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script("start_inference_server_cpu.sh", BIND_ADDRESS="0.0.0.0")
    call = fake_docker.calls("run")[0]
    assert f"0.0.0.0:{fake_docker.variables['TRITON_HTTP_PORT']}:8000" in call
    assert "Triton will answer whoever reaches 0.0.0.0" in result.stderr


def test_host_wins_over_the_bind_address(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script(
        "start_inference_server_cpu.sh", "--host", "0.0.0.0", BIND_ADDRESS="127.0.0.2"
    )
    published = [word for word in fake_docker.calls("run")[0] if word.endswith((":8000", ":8002"))]
    assert [word.partition(":")[0] for word in published] == ["0.0.0.0", "0.0.0.0"]
    assert "Triton will answer whoever reaches 0.0.0.0" in result.stderr


def test_first_pull_warns_of_its_size(fake_docker: FakeDocker) -> None:
    fake_docker.has_images(False)
    result = fake_docker.run_script(GPU_SCRIPT)
    assert f"Pulling {TRITON_IMAGE}: 10 to 15 GB, once." in result.stdout
    assert fake_docker.calls("pull") == [["pull", TRITON_IMAGE]]


def test_image_of_the_environment_wins(fake_docker: FakeDocker) -> None:
    fake_docker.run_script(GPU_SCRIPT, TRITON_IMAGE="example/tritonserver:1")
    assert all("example/tritonserver:1" in call for call in fake_docker.calls("run"))


def test_pull_that_fails_names_image_and_ways_out(fake_docker: FakeDocker) -> None:
    fake_docker.has_images(False)
    fake_docker.fails("pull", "manifest unknown")
    result = fake_docker.run_script("start_inference_server_cpu.sh")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith(
        f"{TRITON_IMAGE} could not be pulled (see above). "
        "Check the network and the tag in .env, or use RUNTIME=local."
    )
    assert not fake_docker.calls("run")


@pytest.mark.parametrize(
    ("engine_says", "script_says"),
    [
        (
            'could not select device driver "" with capabilities: [[gpu]].',
            "Install the NVIDIA Container Toolkit",
        ),
        ("nvidia-container-cli: device error: 7: unknown device", "7: unknown device"),
    ],
)
def test_gpu_that_containers_cannot_have_is_explained(
    fake_docker: FakeDocker, engine_says: str, script_says: str
) -> None:
    fake_docker.fails("run", engine_says)
    result = fake_docker.run_script(GPU_SCRIPT)
    assert result.returncode == 1
    assert script_says in result.stderr
    assert "start_inference_server_cpu.sh" in result.stderr


def test_build_gets_a_terminal_only_where_there_is_one(fake_docker: FakeDocker) -> None:
    fake_docker.run_script("build_models.sh", "--limit", "9")
    (call,) = fake_docker.calls("run")
    assert "--tty" not in call
    assert "--interactive" not in call
    assert call[call.index("--user") + 1] == f"{os.geteuid()}:{os.getegid()}"


def test_build_mounts_the_folders_that_its_options_name(
    fake_docker: FakeDocker, tmp_path: Path
) -> None:
    data_dir, weights = tmp_path / "my data", tmp_path / "weights" / "resnet.pth"
    fake_docker.run_script("build_models.sh", "--data-dir", str(data_dir), f"--weights={weights}")
    (call,) = fake_docker.calls("run")
    for folder in (data_dir, weights.parent, fake_docker.output_dir):
        assert f"type=bind,source={folder},target={folder}" in call
    assert call[-4:] == [
        *("--output-dir", str(fake_docker.output_dir)),
        f"--data-dir={data_dir}",
        f"--weights={weights}",
    ]
    assert data_dir.stat().st_uid == os.geteuid()


def test_torch_index_reaches_the_image(fake_docker: FakeDocker) -> None:
    fake_docker.run_script("build_models.sh", TORCH_INDEX_URL="https://example.org/whl/cu130")
    (call,) = fake_docker.calls("build")
    assert call[call.index("--build-arg") + 1] == "TORCH_INDEX_URL=https://example.org/whl/cu130"


def test_app_without_a_gallery_says_how_to_build_one(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script("start_app.sh", OUTPUT_DIR="/nonexistent")
    assert result.returncode == 1
    assert "Build it with reverse_image_search/bin/build_models.sh" in result.stderr
