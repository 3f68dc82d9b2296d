"""What the repository promises on paper."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from reverse_image_search import contract
from reverse_image_search.serving.model_config import model_config
from tests.running import BIN, REPO_ROOT, run_script

DOCUMENTS = [
    REPO_ROOT / "README.md",
    REPO_ROOT / "CONTRIBUTING.md",
    *sorted((REPO_ROOT / "doc").rglob("*.md")),
]
SOURCES = [
    path
    for folder in ("reverse_image_search", "tests")
    for path in (REPO_ROOT / folder).rglob("*")
    if path.suffix in (".py", ".sh")
]
SCRIPT = re.compile(r"(?:reverse_image_search/bin|tests/docker)/[\w/]+\.sh")


def relative(path: Path) -> str:
    return str(path.relative_to(REPO_ROOT))


@pytest.mark.parametrize("path", [*DOCUMENTS, *SOURCES], ids=relative)
def test_scripts_that_are_named_exist(path):
    """In documents and in error messages alike."""
    for name in SCRIPT.findall(path.read_text()):
        assert os.access(REPO_ROOT / name, os.X_OK), f"{path.name} names {name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_flags_that_are_quoted_exist(path):
    """``build_models.sh --limit 5000`` in a document stands in build_models.sh -h."""
    for name, arguments in re.findall(
        r"reverse_image_search/bin/(\w+\.sh)([^\n`#|]*)", path.read_text()
    ):
        flags = re.findall(r"(?<=\s)--[a-z][\w-]*", arguments)
        if flags:
            help_text = run_script(name, "-h", timeout=60).stdout
            missing = [flag for flag in flags if flag not in help_text]
            assert not missing, f"{path.name}: {name} has no {missing}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_files_that_are_linked_exist(path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=relative)
def test_python_modules_that_are_named_exist(path):
    for name in re.findall(r"-m (reverse_image_search[\w.]*)", path.read_text()):
        assert find_spec(name), f"{path.name} names {name}"


def readme_blocks(language: str) -> list[str]:
    text = (REPO_ROOT / "README.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [code for name, code in blocks if name == language]


PYTHON_BLOCKS = readme_blocks("python")
# Nothing listens there: a request through it fails.
DEAD_PROXY = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")


@pytest.mark.parametrize("proxy", [{}, DEAD_PROXY], ids=["no proxy", "proxy"])
@pytest.mark.parametrize("number", range(len(PYTHON_BLOCKS)))
def test_python_in_the_readme_runs(number, proxy, triton, gallery, tmp_path):
    (query,) = gallery.queries([gallery.query_ids()[0]])
    (tmp_path / "boot.png").write_bytes(query.thumbnail)
    code = PYTHON_BLOCKS[number].replace("http://localhost:8000", triton.url)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | proxy,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_configuration_in_the_readme_is_the_default_one():
    written = model_config(
        contract.VECTOR_SIMILARITY,
        embedding_dim=74,
        top_k=100,
        example_dims=(74,),
        parameters={"encoder_id": "ENCODER_ID", "gallery_id": "GALLERY_ID"},
    )
    (shown,) = (block for block in readme_blocks("") if block.startswith("name:"))
    beginning, omitted = shown.split("#")
    assert written.startswith(beginning)
    rest = written.removeprefix(beginning)
    assert re.findall(r"batch_size: (\d+)", rest) == re.findall(r"\d+", omitted)


def test_every_script_of_bin_is_in_the_readme():
    text = (REPO_ROOT / "README.md").read_text()
    assert [p.name for p in BIN.glob("*.sh") if p.name not in text] == []
