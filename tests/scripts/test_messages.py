"""What the scripts say: help, and errors that name the cause and the next command."""

import os
import shutil
import socket
import subprocess

import pytest

from tests.running import BIN, run_script

SCRIPTS = sorted(path.name for path in BIN.glob("*.sh"))
FRONTS = ("start_inference_server_cpu.sh", "start_inference_server_gpu.sh")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_header_and_starts_nothing(script, flag, tmp_path):
    result = run_script(script, flag, cwd=tmp_path, timeout=60)

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Usage: {script}")
    assert "-h, --help" in result.stdout
    assert "#" not in result.stdout
    assert "set -euo" not in result.stdout
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_can_be_run(script):
    assert os.access(BIN / script, os.X_OK)
    assert (BIN / script).read_text().startswith("#!/usr/bin/env bash\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_named(script, tmp_path):
    result = run_script(
        script, "--no-such-flag", RUNTIME="local", OUTPUT_DIR=str(tmp_path), timeout=120
    )

    assert result.returncode in (1, 2)
    assert "--no-such-flag" in result.stderr
    assert list(tmp_path.iterdir()) == []


# They start nothing in a runtime.
NO_RUNTIME = (
    "test.sh",
    "evaluate.sh",
    "benchmark.sh",
    "search.sh",
    "find_duplicates.sh",
    "embed.sh",
    "docs.sh",
)


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in NO_RUNTIME])
def test_a_wrong_runtime_is_named(script, tmp_path):
    result = run_script(script, RUNTIME="podman", OUTPUT_DIR=str(tmp_path), timeout=60)

    assert result.returncode == 1
    assert "RUNTIME is 'podman', which is neither docker nor local" in result.stderr


@pytest.mark.parametrize("script", [*FRONTS, "start_app.sh"])
@pytest.mark.parametrize("address", [[], ["everywhere"], ["--detach"], ["300.1.1.1"]])
def test_a_host_that_is_not_an_address_is_named(script, address):
    result = run_script(script, "--host", *address, RUNTIME="local", timeout=60)

    assert result.returncode == 1
    assert "--host needs an IPv4 address" in result.stderr


@pytest.mark.parametrize("mode", [[], ["--detach"]])
def test_missing_models_name_the_build_command(ports, tmp_path, mode):
    result = run_script(
        FRONTS[0], *mode, RUNTIME="local", OUTPUT_DIR=str(tmp_path / "nothing"), **ports
    )

    assert result.returncode == 1
    assert f"There are no models in {tmp_path}/nothing/model_repo" in result.stderr
    assert "reverse_image_search/bin/build_models.sh" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_model_is_named_and_not_served(settings, small_build, tmp_path):
    shutil.copytree(small_build, tmp_path / "build")
    model = tmp_path / "build" / "model_repo" / "image_encoder" / "1" / "model.pt"
    with model.open("r+b") as file:
        file.truncate(1000)

    result = run_script(FRONTS[0], **settings | {"OUTPUT_DIR": str(tmp_path / "build")})

    assert result.returncode == 1
    assert f"{model} is damaged" in result.stderr
    assert "reverse_image_search/bin/build_models.sh" in result.stderr


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_no_gpu_is_named_with_the_script_that_works(settings):
    result = run_script(FRONTS[1], **settings)

    assert result.returncode == 1
    assert "no NVIDIA GPU found" in result.stderr
    assert "reverse_image_search/bin/start_inference_server_cpu.sh" in result.stderr


@pytest.fixture
def taken() -> int:
    """A port that this very process listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("script", "name"),
    [
        (FRONTS[0], "TRITON_HTTP_PORT"),
        (FRONTS[0], "TRITON_GRPC_PORT"),
        (FRONTS[0], "TRITON_METRICS_PORT"),
        ("start_app.sh", "APP_PORT"),
        ("demo.sh", "TRITON_HTTP_PORT"),
        ("demo.sh", "APP_PORT"),
    ],
)
def test_a_taken_port_is_named_with_its_owner(settings, taken, script, name):
    result = run_script(script, **settings | {name: str(taken)})

    assert result.returncode == 1
    assert f"port {taken} ({name}) is taken" in result.stderr
    assert f"set {name} to another port" in result.stderr
    if shutil.which("ss") or shutil.which("lsof"):
        assert f"(process {os.getpid()})" in result.stderr


def run_isolated(repository, path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run a script of `repository` with the programs of `path` and no others."""
    return subprocess.run(
        [repository / "reverse_image_search" / "bin" / script, *arguments],
        env={"PATH": str(path), "HOME": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def fresh_clone(copy_repository, tmp_path):
    """A clone in which nothing is installed."""
    repository = copy_repository(tmp_path / "clone")
    shutil.rmtree(repository / ".venv")
    return repository


def test_without_python_the_package_to_install_is_named(fresh_clone, isolated_path):
    result = run_isolated(fresh_clone, isolated_path, "build_models.sh")

    assert result.returncode == 1
    assert result.stdout.startswith("Runtime: local (no Docker engine answers)")
    assert "no Python 3.11, 3.12 or 3.13 found" in result.stderr
    assert "apt-get install python3" in result.stderr


def put_program(folder, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
    (folder / name).chmod(0o755)


def test_a_python_without_venv_is_named_and_leaves_no_half_of_one(fresh_clone, isolated_path):
    (isolated_path / "mkdir").symlink_to(shutil.which("mkdir"))
    put_program(
        isolated_path,
        "python3",
        "[[ $* != *ensurepip* ]] || exit 1\n"
        '[[ $* != "-I -m venv "* ]] || { mkdir -p "$4/bin"; exit 1; }; echo Python 3.11.2',
    )

    result = run_isolated(fresh_clone, isolated_path, "build_models.sh")

    assert result.returncode == 1
    assert "lacks the venv module" in result.stderr
    assert "apt-get install python3-venv" in result.stderr
    assert not (fresh_clone / ".venv").exists()


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
@pytest.mark.parametrize("index_answers", [False, True])
def test_packages_that_cannot_be_installed_are_one_message(
    fresh_clone, isolated_path, index_answers
):
    (fresh_clone / ".venv" / "bin").mkdir(parents=True)
    put_program(
        fresh_clone / ".venv" / "bin",
        "python",
        'case "$*" in *missing_packages*) echo torch ;;'
        f" *urllib*) exit {int(not index_answers)} ;;"
        ' *"pip install"*) echo "no network" >&2; exit 1 ;; esac',
    )

    result = run_isolated(fresh_clone, isolated_path, "build_models.sh")

    assert result.returncode == 1
    reason = "could not be used" if index_answers else "does not answer"
    assert f"PyTorch's CPU index {reason}" in result.stdout
    assert "a download of 2.8 GB, 5.2 GB on disk" in result.stdout
    assert "no network" in result.stderr
    assert "the packages could not be installed into .venv (see above)" in result.stderr


@pytest.mark.parametrize("is_built", [False, True])
def test_the_demo_says_that_its_models_are_the_quick_ones(
    copy_repository, ports, tmp_path, is_built
):
    """And what finds better ones; only where there are none yet."""
    repository, output = copy_repository(tmp_path / "clone"), tmp_path / "output"
    for script in ("build_models.sh", FRONTS[0], "start_app.sh"):
        put_program(repository / "reverse_image_search" / "bin", script, 'echo "$(basename $0) $*"')
    if is_built:
        (output / "gallery").mkdir(parents=True)
        (output / "gallery" / "SHA256SUMS").touch()

    result = run_script(
        "demo.sh", repository=repository, RUNTIME="local", OUTPUT_DIR=str(output), **ports
    )

    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert ("build_models.sh --quick" in lines) != is_built
    assert any("finds better ones" in line for line in lines) != is_built
    assert ("  reverse_image_search/bin/build_models.sh" in lines) != is_built
    assert "start_app.sh " in lines
