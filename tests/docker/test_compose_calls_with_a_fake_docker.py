"""What the scripts ask of Docker where none can do it: a GPU, no image, other Compose versions.
A fake `docker` on the PATH records its command lines and environment and answers as told."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from reverse_image_search import contract, layout
from reverse_image_search.gallery import GalleryFile, GalleryMetadata
from reverse_image_search.gallery_writer import write_gallery
from reverse_image_search.layout import gallery_file
from tests.docker.containers import SERVER_CONTAINER
from tests.running import (
    REPO_ROOT,
    free_ports,
    run_script,
    script_environment,
    skip_or_fail,
    wait_until,
)
from tests.unit.serving.text_builds import publish

# A command fails with the text in failures/<command>; a Compose command is named without `compose`
# and its options. The file `answers/<command>` has what a command prints. <command> is the first
# word, the first two, or the first and the last one, which is a container's name.
FAKE_DOCKER = """#!/usr/bin/env python3
import json, os, pathlib, sys
home = pathlib.Path(__file__).parent
arguments = sys.argv[1:]
is_compose = pathlib.Path(__file__).name == "docker-compose" or arguments[0] == "compose"
if arguments[0] == "compose":
    del arguments[0]
files = []
if is_compose:
    while arguments[0].startswith("--"):
        files += arguments[1:2] * (arguments[0] == "--file")
        del arguments[:2]
with (home / "calls").open("a") as calls:
    calls.write(json.dumps([is_compose, arguments, dict(os.environ), files]) + "\\n")
first, last = arguments[0], arguments[-1]
for name in (f"{first}-{last}", "-".join(arguments[:2]), first):
    if (home / "failures" / name).exists():
        sys.exit((home / "failures" / name).read_text())
    if (home / "answers" / name).exists():
        sys.exit(print((home / "answers" / name).read_text()))
"""

GPU_SCRIPT = "start_inference_server_gpu.sh"
CPU_SCRIPT = "start_inference_server_cpu.sh"
TRITON_IMAGE = "nvcr.io/nvidia/tritonserver:26.11-py3"
NO_GPU = 'could not select device driver "nvidia" with capabilities: [[gpu]]'


@dataclass
class Call:
    """One call of Compose: its command line without `docker compose` and global options."""

    arguments: list[str]
    environment: dict[str, str]
    files: list[str]  # docker-compose.yml, and what is read after it


class FakeDocker:
    """The fake, and the scripts run with it. Its `up` fails, so that a start script ends."""

    def __init__(self, folder: Path, output_dir: Path) -> None:
        self._folder = folder
        for name in ("failures", "answers"):
            (folder / name).mkdir(parents=True)
        self.write("docker", FAKE_DOCKER)
        self.write("nvidia-smi", "#!/bin/sh\necho 'GPU 0: NVIDIA Test (UUID: GPU-0)'\n")
        self.answers("version", "2.40.3")
        self.fails("container", "No such container")
        self.fails("up", "no engine")
        names = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "APP_PORT")
        self.variables = dict(zip(names, map(str, free_ports(4)), strict=True))
        self.output_dir = output_dir

    def write(self, name: str, text: str) -> None:
        """Put a program on the PATH."""
        (self._folder / name).write_text(text)
        (self._folder / name).chmod(0o755)

    def rename(self, name: str, new: str) -> None:
        (self._folder / name).rename(self._folder / new)

    def fails(self, command: str, message: str) -> None:
        (self._folder / "failures" / command).write_text(message)

    def answers(self, command: str, text: str) -> None:
        (self._folder / "answers" / command).write_text(text)

    def run_script(
        self, name: str, *arguments: str, **variables: str
    ) -> subprocess.CompletedProcess:
        settings = self.variables | {"RUNTIME": "docker", "OUTPUT_DIR": str(self.output_dir)}
        path = f"{self._folder}:{os.environ['PATH']}"
        return run_script(name, *arguments, **settings | variables, PATH=path, timeout=120)

    def compose_calls(self, command: str) -> list[Call]:
        calls = self._folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [
            Call(*call)
            for is_compose, *call in map(json.loads, lines)
            if is_compose and call[0][0] == command
        ]

    def server_container(self, status: str, output_dir: Path) -> None:
        """Have the server's container exist, and mount the models in `output_dir`."""
        self.answers(f"container-{SERVER_CONTAINER}", f"{status} {output_dir / 'model_repo'}")

    def up(self) -> Call:
        """The one call of `docker compose up`."""
        (call,) = self.compose_calls("up")
        return call


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


def test_gpu_script_starts_the_gpu_service_alone(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script(GPU_SCRIPT)
    assert result.returncode == 1
    assert "Docker could not start the container" in result.stderr
    call = fake_docker.up()
    assert call.arguments == ["up", "--detach", "--no-deps", "triton-gpu"]
    assert call.environment["GPUS"] == "all"
    assert call.environment["OUTPUT_DIR"] == str(fake_docker.output_dir)
    for name, port in fake_docker.variables.items():
        assert call.environment[name] == port


def test_an_image_with_the_packages_that_the_models_name_is_built(fake_docker: FakeDocker) -> None:
    config = fake_docker.output_dir / "model_repo" / "vector_similarity" / "config.pbtxt"
    config.parent.mkdir()
    parameter = (
        'parameters { key: "requirements" value { string_value: "requirements-milvus.txt" } }'
    )
    config.write_text(f'backend: "python"\n{parameter}\n')
    digest = hashlib.sha256(config.read_bytes()).hexdigest()
    with (fake_docker.output_dir / "gallery" / "SHA256SUMS").open("a") as sums:
        sums.write(f"{digest}  model_repo/vector_similarity/config.pbtxt\n")

    result = fake_docker.run_script(CPU_SCRIPT)
    assert "are in a file" in result.stderr
    assert not fake_docker.compose_calls("up")

    fake_docker.fails("image", "No such image")
    fake_docker.run_script(CPU_SCRIPT, MILVUS_URI="http://milvus:19530")
    (build,) = fake_docker.compose_calls("build")
    assert build.arguments == ["build", "triton-packages"]
    assert build.environment["TRITON_IMAGE"] == TRITON_IMAGE
    assert build.environment["TRITON_REQUIREMENTS"] == "requirements-milvus.txt"
    assert fake_docker.up().environment["TRITON_IMAGE"] == "reverse_image_search-triton-packages"
    assert fake_docker.up().environment["MILVUS_URI"] == "http://milvus:19530"


def test_servers_run_as_the_caller_but_never_as_root(fake_docker: FakeDocker) -> None:
    fake_docker.run_script(CPU_SCRIPT)
    user = f"{os.geteuid() or 1000}:{os.getegid() or 1000}"
    assert fake_docker.up().environment["CONTAINER_USER"] == user


@pytest.mark.parametrize(
    "info", [" Security Options:\n  seccomp\n  rootless\n Kernel", "host:\n    rootless: true\nx"]
)
def test_to_a_rootless_engine_the_caller_is_root(fake_docker: FakeDocker, info: str) -> None:
    fake_docker.answers("info", info)
    fake_docker.run_script("build_models.sh")
    (call,) = fake_docker.compose_calls("run")
    assert call.environment["CONTAINER_USER"] == "0:0"


def test_gpus_picks_devices(fake_docker: FakeDocker) -> None:
    fake_docker.run_script(GPU_SCRIPT, GPUS="device=0,2")
    assert fake_docker.up().environment["GPUS"] == "0,2"


def test_gpu_of_a_machine_with_eight_is_found_every_time(fake_docker: FakeDocker) -> None:
    listing = "#!/usr/bin/env bash\nfor i in {0..7}; do echo GPU $i: NVIDIA Test; done\n"
    fake_docker.write("nvidia-smi", listing)
    for _ in range(5):
        result = fake_docker.run_script(GPU_SCRIPT)
        assert "no NVIDIA GPU found" not in result.stderr
    assert len(fake_docker.compose_calls("up")) == 5


def test_cpu_script_starts_the_cpu_service(fake_docker: FakeDocker) -> None:
    fake_docker.run_script(CPU_SCRIPT)
    assert fake_docker.up().arguments[-1] == "triton"


def test_ensemble_is_a_second_repository(fake_docker: FakeDocker) -> None:
    fake_docker.run_script(CPU_SCRIPT)
    assert "ensemble_repo" not in fake_docker.up().environment.get("TRITON_ARGUMENTS", "")
    fake_docker.run_script(CPU_SCRIPT, "--ensemble")
    call = fake_docker.compose_calls("up")[-1]
    assert "--model-repository=/ensemble_repo" in call.environment["TRITON_ARGUMENTS"].split()


def test_other_bind_address_is_published_and_said(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script(CPU_SCRIPT, BIND_ADDRESS="0.0.0.0")
    assert fake_docker.up().environment["BIND_ADDRESS"] == "0.0.0.0"
    assert "Triton will answer anyone who reaches 0.0.0.0" in result.stderr


def test_host_wins_over_the_bind_address(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script(CPU_SCRIPT, "--host", "0.0.0.0", BIND_ADDRESS="127.0.0.2")
    assert fake_docker.up().environment["BIND_ADDRESS"] == "0.0.0.0"
    assert "Triton will answer anyone who reaches 0.0.0.0" in result.stderr


def test_first_pull_warns_of_its_size(fake_docker: FakeDocker) -> None:
    fake_docker.fails("image", "No such image")
    result = fake_docker.run_script(GPU_SCRIPT)
    assert f"Pulling {TRITON_IMAGE}: 10 to 15 GB, once." in result.stdout
    (call,) = fake_docker.compose_calls("pull")
    assert call.arguments == ["pull", "triton-gpu"]


def test_image_of_the_environment_wins(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script(CPU_SCRIPT, TRITON_IMAGE="example/tritonserver:1")
    assert "starting example/tritonserver:1" in result.stdout
    assert fake_docker.up().environment["TRITON_IMAGE"] == "example/tritonserver:1"


def test_pull_that_fails_names_image_and_ways_out(fake_docker: FakeDocker) -> None:
    fake_docker.fails("image", "No such image")
    fake_docker.fails("pull", "manifest unknown")
    result = fake_docker.run_script(CPU_SCRIPT)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith(
        f"{TRITON_IMAGE} could not be pulled (see above). "
        "Check the network and the tag in .env, or use RUNTIME=local."
    )
    assert not fake_docker.compose_calls("up")


@pytest.mark.parametrize(
    ("engine_says", "script_says"),
    [
        (f"Cannot start service triton-gpu: {NO_GPU}", "Install the NVIDIA Container Toolkit"),
        ("nvidia-container-cli: device error: 7: unknown device", "7: unknown device"),
    ],
)
def test_gpu_that_containers_cannot_have_is_explained(
    fake_docker: FakeDocker, engine_says: str, script_says: str
) -> None:
    fake_docker.fails("up", engine_says)
    result = fake_docker.run_script(GPU_SCRIPT)
    assert result.returncode == 1
    assert script_says in result.stderr
    assert CPU_SCRIPT in result.stderr


def test_build_gets_a_terminal_only_where_there_is_one(fake_docker: FakeDocker) -> None:
    fake_docker.run_script("build_models.sh", "--limit", "9")
    (call,) = fake_docker.compose_calls("run")
    assert "-T" in call.arguments
    assert call.environment["CONTAINER_USER"] == f"{os.geteuid()}:{os.getegid()}"


def test_build_mounts_the_folders_that_its_options_name(
    fake_docker: FakeDocker, tmp_path: Path
) -> None:
    data_dir, weights = tmp_path / "my data", tmp_path / "weights" / "resnet.pth"
    fake_docker.run_script("build_models.sh", "--data-dir", str(data_dir), f"--weights={weights}")
    (call,) = fake_docker.compose_calls("run")
    for folder in (REPO_ROOT, data_dir, weights.parent, fake_docker.output_dir):
        assert call.arguments.count(f"{folder}:{folder}") == 1
    assert call.arguments[call.arguments.index("build") :] == [
        "build",
        f"--output-dir={fake_docker.output_dir}",
        f"--data-dir={data_dir}",
        f"--weights={weights}",
    ]
    assert data_dir.stat().st_uid == os.geteuid()


def test_build_refuses_a_folder_that_cannot_be_mounted(
    fake_docker: FakeDocker, tmp_path: Path
) -> None:
    result = fake_docker.run_script("build_models.sh", "--data-dir", str(tmp_path / "a:b"))
    assert result.returncode == 1
    assert "its name has a colon" in result.stderr
    assert not fake_docker.compose_calls("run")


def test_build_knows_of_a_server_of_another_folder(fake_docker: FakeDocker, tmp_path: Path) -> None:
    """It would wait in vain for it where the folder of the build is a copy of the served one."""
    copy, link = tmp_path / "copy", tmp_path / "link"
    shutil.copytree(fake_docker.output_dir, copy)
    link.symlink_to(fake_docker.output_dir)
    fake_docker.server_container("running", fake_docker.output_dir)
    fake_docker.run_script("build_models.sh", f"--output-dir={copy}")
    fake_docker.run_script("build_models.sh", OUTPUT_DIR=str(link))

    calls = fake_docker.compose_calls("run")
    known = [call.environment.get("CONTAINER_SERVES") for call in calls]
    assert known == ["another", None]
    assert "CONTAINER_SERVES: another\n" in compose_config(
        "--profile", "build", CONTAINER_SERVES="another"
    )


def test_previous_waits_for_a_container_that_the_engine_starts_again(
    fake_docker: FakeDocker, tmp_path: Path
) -> None:
    output_dir = tmp_path / "two builds"
    publish(output_dir, "old")
    publish(output_dir, "new")
    fake_docker.server_container("restarting", output_dir)
    for model in contract.MODELS:
        answer = tmp_path / "web" / "v2" / "models" / model.name / "config"
        answer.parent.mkdir(parents=True)
        policy = {"specific": {"versions": [3]}}
        served = {"name": model.name, "version_policy": policy, "parameters": {}}
        answer.write_text(json.dumps(served))

    with ThreadPoolExecutor() as pool:
        rolling_back = pool.submit(
            fake_docker.run_script, CPU_SCRIPT, "--previous", OUTPUT_DIR=str(output_dir)
        )
        config = output_dir / "model_repo" / "image_encoder" / "config.pbtxt"
        wait_until(lambda: layout.version_policy(3) in config.read_text(), "published", 60)
        time.sleep(0.5)  # in which it finds nobody at the port
        address = ("127.0.0.1", int(fake_docker.variables["TRITON_HTTP_PORT"]))
        handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "web")
        with ThreadingHTTPServer(address, handler) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            result = rolling_back.result()
            server.shutdown()

    assert result.returncode == 0, result.stderr
    assert "took it over" in result.stdout


def test_app_without_a_gallery_says_how_to_build_one(fake_docker: FakeDocker) -> None:
    result = fake_docker.run_script("start_app.sh", OUTPUT_DIR="/nonexistent")
    assert result.returncode == 1
    assert "Build it with reverse_image_search/bin/build_models.sh" in result.stderr


@pytest.mark.parametrize(
    ("url", "service"),
    [
        ("http://localhost:8000", "app-on-host"),
        ("http://127.0.0.1:8000", "app-on-host"),
        ("http://triton.example.org:8000", "app"),
    ],
)
def test_app_uses_the_network_that_leads_to_its_server(
    fake_docker: FakeDocker, url: str, service: str
) -> None:
    fake_docker.run_script("start_app.sh", TRITON_URL=url)
    assert fake_docker.up().arguments[-1] == service
    assert fake_docker.up().environment["TRITON_URL"] == url
    assert len(fake_docker.up().files) == 1  # no images of one's own


def test_app_sees_the_folders_of_its_gallery_read_only(
    fake_docker: FakeDocker, tmp_path: Path
) -> None:
    named, added = tmp_path / "my \"best\" photos, 'n' $HOME", tmp_path / "scans"
    not_utf8 = Path(os.fsdecode(bytes(tmp_path / "not") + b"\xff"))
    others = [tmp_path / "gone", tmp_path / "a:b", not_utf8, Path("/usr")]
    for folder in (named / "inside", added, *others[1:]):
        folder.mkdir(parents=True, exist_ok=True)
    paths = [named / "inside" / "1.jpg", added / "2.jpg", *(each / "3.jpg" for each in others)]
    write_gallery(
        gallery_file(fake_docker.output_dir),
        GalleryMetadata(
            "gallery", "encoder", "photos", [], 8, 8, False, False,
            build_options={"folders": list(map(str, [named, *others]))},
        ),
        [],
        files=[GalleryFile(bytes(path), 0, 0, 0) for path in paths],
    )  # fmt: skip

    output = fake_docker.run_script("start_app.sh").stderr

    main_file, volumes_file = fake_docker.up().files
    assert main_file == str(REPO_ROOT / "docker-compose.yml")
    app = json.loads(Path(volumes_file).read_text())["services"]["app"]
    assert app["volumes"] == [
        {"type": "bind", "source": path, "target": path, "read_only": True}
        for path in (str(named).replace("$", "$$"), str(added))
    ]
    for reason in ("gone': it is not there", "a colon", "not UTF-8", "'/usr': the app's container"):
        assert reason in output
    together = ("--file", main_file, "--file", volumes_file)
    assert f"target: {added}\n" in compose_config(*together, "--profile", "cpu")


@pytest.mark.parametrize("script", ["build_models.sh", CPU_SCRIPT, "start_app.sh"])
def test_engine_without_compose_is_explained_in_a_sentence(
    fake_docker: FakeDocker, script: str
) -> None:
    fake_docker.fails("version", "unknown command: docker compose")
    fake_docker.write("docker-compose", "#!/bin/sh\nexit 127\n")
    result = fake_docker.run_script(script)
    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert "needs Docker Compose 1.28 or newer. Install it" in sentence
    assert "or use RUNTIME=local" in sentence


@pytest.mark.parametrize("version", ["1.27.4", "1.0.6"])  # the latter is podman-compose's
def test_compose_that_is_too_old_is_named(fake_docker: FakeDocker, version: str) -> None:
    fake_docker.answers("version", version)
    fake_docker.write("docker-compose", "#!/bin/sh\nexit 127\n")
    result = fake_docker.run_script(CPU_SCRIPT)
    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert f"1.28 or newer, not docker compose {version}" in sentence


PODMAN = """#!/bin/sh
case $1 in
  version) printf 'Client:       Podman Engine\\nVersion:      4.3.1\\n' ;;
  compose) exit 125 ;;
esac
"""


def test_podman_as_docker_is_told_what_compose_needs(fake_docker: FakeDocker) -> None:
    fake_docker.write("docker", PODMAN)
    fake_docker.write("docker-compose", "#!/bin/sh\n[ $1 = version ] && echo 1.29.2\n")
    result = fake_docker.run_script(CPU_SCRIPT, DOCKER_HOST="")
    assert result.returncode == 1
    assert "docker is podman here" in result.stderr.splitlines()[-1]
    assert "RUNTIME=local" in result.stderr.splitlines()[-1]


def test_podman_as_docker_is_not_chosen_by_itself(fake_docker: FakeDocker) -> None:
    fake_docker.write("docker", PODMAN)
    first_line = fake_docker.run_script(CPU_SCRIPT, RUNTIME="", DOCKER_HOST="").stdout
    assert first_line.startswith("Runtime: local")


def test_standalone_compose_is_used_where_the_plugin_is_missing(fake_docker: FakeDocker) -> None:
    fake_docker.rename("docker", "docker-compose")
    fake_docker.write("docker", "#!/bin/sh\n[ $1 = image ] || [ $1 = info ]\n")
    fake_docker.answers("version", "1.28.0")
    fake_docker.run_script(CPU_SCRIPT)
    assert fake_docker.up().arguments[-1] == "triton"


def test_compose_that_does_not_reach_the_engine_says_why(fake_docker: FakeDocker) -> None:
    fake_docker.fails("ps", "Cannot connect to the Docker daemon. Is it running?")
    result = fake_docker.run_script(CPU_SCRIPT)
    assert result.returncode == 1
    (sentence,) = result.stderr.splitlines()
    assert sentence.endswith("2.40.3 failed: Cannot connect to the Docker daemon. Is it running?")


def test_build_arguments_and_devices_come_from_the_environment() -> None:
    variables = {"TORCH_INDEX_URL": "https://example.org/whl/cu130", "GPUS": "0,2"}
    variables["MILVUS_URI"] = "http://milvus:19530"
    profiles = ("--profile", "gpu", "--profile", "build", "--profile", "milvus")
    config = compose_config(*profiles, **variables)
    assert config.count("MILVUS_URI: http://milvus:19530") >= 2  # Triton and the build
    assert f"TRITON_IMAGE: {TRITON_IMAGE}" in config
    assert "TORCH_INDEX_URL: https://example.org/whl/cu130" in config
    assert "- 0,2\n" in config


def compose_config(*options: str, **variables: str) -> str:
    """As Compose itself reads docker-compose.yml and further files; that needs no engine."""
    if not shutil.which("docker-compose"):
        skip_or_fail("docker-compose; tests/docker/install_engine.sh installs it")
    result = subprocess.run(
        ["docker-compose", *options, "config"],
        cwd=REPO_ROOT, env=script_environment(**variables), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout
