"""The Python that scripts use: .venv alone, sound or made anew, and nothing of the caller's."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.running import (
    REPO_ROOT,
    answers,
    run_script,
    script_environment,
    skip_or_fail,
    wait_until,
)

PACKAGE = "tqdm"  # small, and pinned in requirements.txt


@pytest.fixture
def clone(tmp_path):
    """A clone that needs one small package, and has no .venv."""
    folder = tmp_path / "clone"
    folder.mkdir()
    shutil.copytree(
        REPO_ROOT / "reverse_image_search",
        folder / "reverse_image_search",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in (".env", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO_ROOT / name, folder)
    lines = (REPO_ROOT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line.startswith(f"{PACKAGE}==")]
    (folder / "requirements.txt").write_text("\n".join(pins) + "\n")
    return folder


def prepare(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """What scripts do to .venv before they use it: ``prepare_python arguments``."""
    library = clone / "reverse_image_search" / "bin" / "lib"
    names = ("settings", "python_environment")
    sources = "\n".join(f'source "{library}/{name}.sh"' for name in names)
    command = shlex.join(["prepare_python", *arguments])
    return subprocess.run(
        ["bash", "-p", "-c", f"set -euo pipefail\n{sources}\n{command}"],
        env=script_environment(**environment),
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_sound(clone: Path, result: subprocess.CompletedProcess) -> None:
    """.venv has the package and the clone's own code, and nothing is left to do."""
    assert result.returncode == 0, result.stdout + result.stderr
    code = f"import {PACKAGE}, reverse_image_search as r; print({PACKAGE}.__file__, r.__file__)"
    python = clone / ".venv" / "bin" / "python"
    found = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    package, own = found.stdout.split()
    assert Path(package).is_relative_to(clone / ".venv")
    assert Path(own) == clone / "reverse_image_search" / "__init__.py"
    again = prepare(clone)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def make_venv(clone: Path, *options: str) -> Path:
    subprocess.run([sys.executable, "-m", "venv", *options, clone / ".venv"], check=True)
    return clone / ".venv"


def site_packages(venv: Path) -> Path:
    return next((venv / "lib").glob("python3.*")) / "site-packages"


def without_pip(clone: Path) -> None:
    """As `uv venv` leaves it, or a first start that was interrupted."""
    make_venv(clone, "--without-pip")


def with_half_of_pip(clone: Path) -> None:
    packages = site_packages(make_venv(clone, "--without-pip"))
    (packages / "pip").mkdir()
    (packages / "pip" / "__init__.py").touch()


def with_another_python(clone: Path) -> None:
    """As a system upgrade does it: bin/python is of another version than the packages."""
    packages = site_packages(make_venv(clone))
    packages.parent.rename(packages.parent.with_name("python3.10"))


def with_a_python_that_is_gone(clone: Path) -> None:
    python = make_venv(clone) / "bin" / "python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.0")


def that_is_a_dangling_link(clone: Path) -> None:
    (clone / ".venv").symlink_to(clone / "gone")


def that_is_a_file(clone: Path) -> None:
    (clone / ".venv").touch()


def that_is_empty(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)


@pytest.mark.parametrize(
    "damage",
    [
        without_pip,
        with_half_of_pip,
        with_another_python,
        with_a_python_that_is_gone,
        that_is_a_dangling_link,
        that_is_a_file,
        that_is_empty,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_venv_that_does_not_work_is_repaired(clone, damage):
    damage(clone)

    assert_sound(clone, prepare(clone))


@pytest.fixture
def other_packages(tmp_path) -> Path:
    """A folder that has the package, as one that PYTHONPATH names."""
    folder = tmp_path / "other packages"
    source = Path(sysconfig.get_path("purelib"))
    for path in (p for folder in map(Path, sys.path) for p in folder.glob(f"{PACKAGE}*")):
        shutil.copytree(path, folder / path.name, dirs_exist_ok=True)
    if not (folder / PACKAGE).exists():
        skip_or_fail(f"{PACKAGE} is not in {source}")
    return folder


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONPATH": "{packages}"},
        {"PYTHONHOME": "/nowhere"},
        {"PYTHONUSERBASE": "{packages}", "PYTHONSTARTUP": "/nowhere"},
        {"PIP_TARGET": "{packages}"},
        {"PIP_USER": "1"},
        {"PIP_PREFIX": "{packages}"},
        {"PIP_ROOT": "{packages}"},
        {"VIRTUAL_ENV": "/nowhere", "CONDA_PREFIX": "/nowhere"},
        {"HOME": ""},
        {"HOME": "/nowhere"},
    ],
    ids=lambda variables: "-".join(variables) + ("" if all(variables.values()) else "-empty"),
)
def test_the_caller_s_python_settings_change_nothing(clone, other_packages, variables):
    variables = {k: v.format(packages=other_packages) for k, v in variables.items()}

    assert_sound(clone, prepare(clone, **variables))


def test_a_copied_clone_runs_its_own_code(clone, tmp_path):
    """The .venv that is copied with it leads to the code of the first."""
    assert_sound(clone, prepare(clone))
    copy = shutil.copytree(clone, tmp_path / "copy", symlinks=True)

    assert_sound(copy, prepare(copy))


def test_packages_that_the_job_does_not_need_are_not_installed(clone):
    with (clone / "requirements.txt").open("a") as file:
        file.write("no-such-package==1.0\nno-such-package-either[extra]==1.0\n")

    assert prepare(clone, "--only", f"numpy {PACKAGE}").returncode == 0
    again = prepare(clone, "--only", f"numpy {PACKAGE}")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.parametrize("uv_fails", [False, True])
def test_uv_installs_where_there_is_one_and_pip_where_that_fails(clone, tmp_path, uv_fails):
    uv = tmp_path / "path" / "uv"
    uv.parent.mkdir()
    uv.write_text(f'#!/usr/bin/env bash\necho "$PWD: $*" >>"$0.log"\nexit {int(uv_fails)}\n')
    uv.chmod(0o755)
    make_venv(clone)

    result = prepare(clone, PATH=f"{uv.parent}:{os.environ['PATH']}", UV_SYSTEM_PYTHON="1")

    assert result.returncode == 0, result.stdout + result.stderr
    packages, project = uv.with_suffix(".log").read_text().splitlines()
    assert packages.startswith(f"{clone}: pip install --python {clone}/.venv/bin/python")
    assert f"{PACKAGE}==" in packages
    assert project.endswith(f"--no-deps --editable {clone}")
    assert ("Trying pip" in result.stdout) == uv_fails
    assert (site_packages(clone / ".venv") / PACKAGE).exists() == uv_fails  # the fake does nothing


NOBODY = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", "env", "-i"]


@pytest.fixture
def python_for_all() -> str:
    """A Python of this version that a user id without a name may run as well."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for python in (f"{sys.base_prefix}/bin/{name}", f"/usr/bin/{name}"):
        if subprocess.run([*NOBODY, python, "-c", ""], capture_output=True).returncode == 0:
            return python
    pytest.skip(f"no {name} here may be run by another user")


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """An empty folder that all may enter; pytest's own are for their owner alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def run_as_nobody(script: Path, **variables: str) -> list[str]:
    """The command line that runs `script` as a user id without name and home."""
    settings = [f"{name}={value}" for name, value in variables.items()]
    return [*NOBODY, f"PATH={os.environ['PATH']}", *settings, str(script)]


def test_a_venv_of_another_owner_that_lacks_packages_is_named(clone, python_for_all, public_folder):
    clone = clone.rename(public_folder / "clone")
    subprocess.run([python_for_all, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    script = clone / "reverse_image_search" / "bin" / "build_models.sh"

    result = subprocess.run(run_as_nobody(script, RUNTIME="local"), capture_output=True, text=True)

    assert result.returncode == 1
    assert f"{clone}/.venv lacks packages and cannot be changed: it belongs to root" in (
        result.stderr
    )


def test_a_venv_of_another_owner_that_does_not_work_is_named(clone, python_for_all, public_folder):
    clone = clone.rename(public_folder / "clone")
    that_is_empty(clone)
    script = clone / "reverse_image_search" / "bin" / "build_models.sh"

    result = subprocess.run(run_as_nobody(script, RUNTIME="local"), capture_output=True, text=True)

    assert result.returncode == 1
    assert result.stderr == (
        f"build_models.sh: {clone}/.venv cannot be removed: it belongs to root.\n"
    )


def test_venv_s_own_reason_is_shown(clone, tmp_path):
    """Such as a colon in the path, which PATH cannot hold."""
    folder = tmp_path / "a:b"
    folder.mkdir()
    moved = shutil.move(clone, folder / "clone")

    result = prepare(moved)

    assert result.returncode == 1
    assert "contains the PATH separator" in result.stderr + result.stdout
    assert f"could not make {moved}/.venv (see above)" in result.stderr
    assert "apt-get" not in result.stderr


MODULES = ("random", "torch", "numpy", "reverse_image_search", "encodings", "site", "pip")


@pytest.mark.parametrize("script", ["build_models.sh", "start_inference_server_cpu.sh"])
@pytest.mark.parametrize("module", MODULES)
def test_modules_in_the_caller_s_folder_are_not_imported(tmp_path, ports, script, module):
    (tmp_path / f"{module}.py").write_text("raise SystemExit('wrong module')\n")
    arguments = {"build_models.sh": ["--limit", "0"], "start_inference_server_cpu.sh": ["--stop"]}

    result = run_script(
        script,
        *arguments[script],
        cwd=tmp_path,
        RUNTIME="local",
        OUTPUT_DIR=str(tmp_path),
        **ports,
    )

    assert "wrong module" not in result.stdout + result.stderr
    if script == "build_models.sh":
        assert "'0' is not a positive integer" in result.stderr
    else:
        assert result.returncode == 0, result.stderr


def test_a_script_called_from_another_clone_runs_its_own_code(clone, ports):
    """From that clone's root, where `import reverse_image_search` finds the other one's."""
    for file in (clone / "reverse_image_search").rglob("*.py"):
        file.write_text("raise SystemExit('wrong clone')\n")

    result = run_script(
        "start_inference_server_cpu.sh", cwd=clone, RUNTIME="local", OUTPUT_DIR=str(clone), **ports
    )

    assert "wrong clone" not in result.stdout + result.stderr
    assert f"There are no models in {clone}/model_repo" in result.stderr


@pytest.fixture
def public_clone(copy_repository, python_for_all, public_folder, small_build, settings) -> Path:
    """A clone with all packages and a build, readable for all, writable for its owner alone."""
    settings["OUTPUT_DIR"] = str(shutil.copytree(small_build, public_folder / "build"))
    (public_folder / "build").chmod(0o755)
    return copy_repository(public_folder / "clone", python_for_all)


def test_the_app_runs_for_a_user_id_without_name_or_home(public_clone, settings, tmp_path):
    """As Kubernetes and OpenShift start containers: runAsUser, on code of another owner."""
    log = tmp_path / "log"
    script = public_clone / "reverse_image_search" / "bin" / "start_app.sh"
    with log.open("w") as output:
        process = subprocess.Popen(run_as_nobody(script, **settings), stdout=output, stderr=output)
    try:
        health = f"http://127.0.0.1:{settings['APP_PORT']}/_stcore/health"
        wait_until(lambda: answers(health) or process.poll() is not None, "the app", timeout=60)
        assert process.poll() is None, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.terminate()
        process.wait(30)


def test_the_server_runs_for_a_user_id_without_name_or_home(public_clone, settings):
    script = public_clone / "reverse_image_search" / "bin" / "start_inference_server_cpu.sh"
    command = run_as_nobody(script, **settings)
    try:
        started = subprocess.run([*command, "--detach"], capture_output=True, text=True)
        assert started.returncode == 0, started.stdout + started.stderr
    finally:
        stopped = subprocess.run([*command, "--stop"], capture_output=True, text=True)
    assert "Stopped the server" in stopped.stdout, stopped.stderr
