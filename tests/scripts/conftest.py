"""For the tests of the scripts in reverse_image_search/bin, which all run in the local runtime."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.running import free_ports


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
