"""Style of code, and which rooms import which; `test.sh --fast` runs this beside the unit tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import REPO_ROOT

TOOLS = Path(sys.executable).parent  # where pip puts ruff and the others
SHELL_SCRIPTS = [
    REPO_ROOT / ".ci" / "run",
    *(
        p
        for folder in ("reverse_image_search", "tests")
        for p in (REPO_ROOT / folder).rglob("*.sh")
    ),
]


def run_tool(*command: str | Path) -> None:
    result = subprocess.run(
        [TOOLS / command[0], *command[1:]], cwd=REPO_ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_shell_scripts_pass_shellcheck():
    run_tool("shellcheck", *SHELL_SCRIPTS)


def test_shell_scripts_are_formatted():
    run_tool("shfmt", "--diff", *SHELL_SCRIPTS)


def test_python_passes_ruff():
    run_tool("ruff", "check", ".")


def test_python_is_formatted():
    run_tool("ruff", "format", "--check", ".")


def test_imports_go_downwards_only():
    """The rules stand in pyproject.toml."""
    run_tool("lint-imports", "--no-cache")


def test_types_are_right():
    run_tool("mypy", "--python-executable", sys.executable)


@pytest.mark.parametrize(
    "path",
    sorted((REPO_ROOT / "reverse_image_search/bin/lib").glob("*.sh")),
    ids=lambda path: path.name,
)
def test_shell_libraries_are_short(path):
    assert len(path.read_text().splitlines()) <= 150
