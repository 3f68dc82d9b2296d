"""README's commands, typed line by line by a reader who has a folder of photos."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.terminals import Terminals
from tests.running import REPO_ROOT, free_ports

# What a command prints that runs until Ctrl-C.
PRINTED = {"demo.sh": "Ctrl-C here stops", "--watch": "Stop with Ctrl-C."}
# tests/scripts/test_processes.py runs it, and stops it in several ways.
RUN_ELSEWHERE = {"reverse_image_search/bin/demo.sh"}


def lines_of_readme() -> list[str]:
    """The commands of the `bash` blocks, without comments."""
    text = (REPO_ROOT / "README.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line not in RUN_ELSEWHERE]


def session_of_readme() -> list[tuple[str, str]]:
    """The commands of the terminal session, each with what it prints there."""
    text = (REPO_ROOT / "README.md").read_text()
    (session,) = re.findall(r"^```\n\$ (.*?)^```$", text, re.DOTALL | re.MULTILINE)
    parts = (part.partition("\n") for part in session.split("\n$ "))
    return [(command, printed) for command, _, printed in parts]


def shapes(printed: str) -> set[str]:
    """The lines of what search.sh or find_duplicates.sh prints, without labels, paths, figures."""
    printed = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "\n", printed)  # what moves a progress bar's cursor
    lines = re.sub(r"/\S+", "PATH", printed).replace("groups", "group")
    lines = re.sub(r" +", " ", re.sub(r"\d[\d,.]*", "N", lines))
    return set(re.split(r"[\r\n]+", re.sub(r" N \S+ PATH", " N LABEL PATH", lines.strip())))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A reader's folder: Pictures, with a smaller copy of one, Scans, and queries."""
    dress = tmp_path / "Pictures" / "dress"
    for number, name in enumerate(["Pictures/dress/a", "Pictures/coat/b", "Scans/c", "new"]):
        file = tmp_path / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), np.uint8)
        Image.fromarray(pixels).resize((480, 320), Image.Resampling.BICUBIC).save(file)
    Image.open(dress / "a.jpg").resize((240, 160)).save(dress / "small.jpg")
    (tmp_path / "queries").mkdir()
    shutil.copy(dress / "a.jpg", tmp_path / "queries")
    return tmp_path


def test_each_command_of_the_readme_succeeds(make_clone, environment, home, figure):
    clone = make_clone("readme")
    names = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "APP_PORT")
    ports = dict(zip(names, map(str, free_ports(4)), strict=True))
    environment = environment | ports | {"HOME": str(home), "BROWSER": "true"}
    (clone / "found").mkdir()
    shutil.copy(home / "Pictures" / "coat" / "b.jpg", clone / "photo.jpg")
    shutil.copy(home / "new.jpg", clone)
    shutil.copy(home / "new.jpg", clone / "holiday.jpg")
    shutil.copy(home / "new.jpg", clone / "coat.jpg")
    demo, others = Terminals(clone, environment), Terminals(clone, environment)
    try:
        for line in lines_of_readme():
            line = line.replace("https://example.org", f"file://{clone}")
            until_ctrl_c = [text for name, text in PRINTED.items() if name in line]
            if "demo.sh" in line:  # it serves what the other commands search
                demo.start(line, *until_ctrl_c)
            elif until_ctrl_c:
                others.start(line, *until_ctrl_c)
                others.press_ctrl_c()
                others.bash("true")  # Ctrl-C is a failure to bash
            else:
                printed, succeeded = others.bash(line)
                assert succeeded, f"{line}\n{printed}"
        for line, shown in session_of_readme():
            printed, succeeded = others.bash(line)
            assert succeeded, f"{line}\n{printed}"
            assert shapes(shown) <= shapes(printed), f"{line}\n{printed}"
    finally:
        others.close()
        demo.press_ctrl_c()
        demo.close()
    assert (clone / "found" / "b.jpg").is_file()
    commands = len(lines_of_readme()) + len(session_of_readme())
    figure(f"README.md: {commands} commands run")
