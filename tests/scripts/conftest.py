"""For the tests of the scripts in reverse_image_search/bin, which all run in the local runtime."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import REPO_ROOT, free_ports


@pytest.fixture
def ports() -> dict[str, str]:
    """All four ports, as settings, and free."""
    names = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "APP_PORT")
    return dict(zip(names, map(str, free_ports(4)), strict=True))


@pytest.fixture
def settings(small_build: Path, ports: dict[str, str]) -> dict[str, str]:
    """What a script needs to run the small build on ports of its own."""
    return {"RUNTIME": "local", "OUTPUT_DIR": str(small_build), **ports}


@pytest.fixture
def copy_repository() -> Callable[..., Path]:
    """``copy_repository(folder)``: what a user clones, with a .venv that has the packages."""

    def copy(folder: Path, python: str = sys.executable) -> Path:
        folder.mkdir(parents=True)
        for name in ("reverse_image_search", ".streamlit"):
            shutil.copytree(
                REPO_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in (".env", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPO_ROOT / name, folder)
        for path in REPO_ROOT.glob("requirements*.txt"):
            shutil.copy(path, folder)
        venv = folder / ".venv"
        subprocess.run([python, "-m", "venv", "--without-pip", venv], check=True)
        packages = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        (packages / "clone.pth").write_text(f"{folder}\n")
        shared = [path for path in map(Path, sys.path) if path.name == "site-packages"]
        (packages / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
        (folder / ".triton").mkdir()
        for wheel in (REPO_ROOT / ".triton").glob("nvidia-pytriton-*"):
            (folder / ".triton" / wheel.name).symlink_to(wheel.resolve())
        return folder

    return copy


@pytest.fixture
def isolated_path(tmp_path: Path) -> Path:
    """A folder for PATH with a few tools and no Python, Docker or nvidia-smi."""
    folder = tmp_path / "path"
    folder.mkdir()
    for tool in (
        "bash",
        "basename",
        "cat",
        "dirname",
        "env",
        "grep",
        "ls",
        "readlink",
        "rm",
        "sed",
        "uname",
    ):
        (folder / tool).symlink_to(shutil.which(tool))
    return folder
