"""embed.sh on a real server: what it writes, and how it goes on after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.terminal import embed
from tests.running import wait_until

COUNT, PART_SIZE = 300, 20


@pytest.fixture(scope="module")
def images(gallery_pixels: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of the first gallery images, by name, and one that is damaged."""
    folder = tmp_path_factory.mktemp("images")
    for number, pixels in enumerate(gallery_pixels[:COUNT]):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    (folder / "damaged.png").write_bytes(b"no image")
    return folder


def embed_into(folder: Path, url: str, *arguments: object) -> int:
    return embed.main(["--into", str(folder), "--url", url, *map(str, arguments)])


def read_parts(folder: Path) -> dict[str, np.ndarray]:
    """Embeddings by name of the file."""
    found = {}
    for part in sorted(folder.glob("part-*.npy")):
        names = [Path(json.loads(line)).name for line in part.with_suffix(".jsonl").open()]
        found |= dict(zip(names, np.load(part), strict=True))
    return found


def test_parts_hold_what_the_served_encoder_says(
    triton, images, gallery_embeddings, tmp_path, capsys
):
    assert embed_into(tmp_path, triton.url, "--part-size", 128, images) == 0
    found = read_parts(tmp_path)
    assert list(found) == [f"{number:03}.png" for number in range(COUNT)]
    rows = np.stack(list(found.values()))
    np.testing.assert_allclose(rows, gallery_embeddings[:COUNT], atol=1e-5)
    assert len(list(tmp_path.glob("part-*.npy"))) == 3
    ((path, reason),) = map(json.loads, (tmp_path / "part-00002.unreadable.jsonl").open())
    assert Path(path).name == "damaged.png"
    assert reason in capsys.readouterr().err


def test_a_killed_run_goes_on_with_the_parts_that_are_missing(triton, images, tmp_path):
    command = [sys.executable, "-m", "reverse_image_search.terminal.embed", "--into", tmp_path]
    command += ["--url", triton.url, "--part-size", str(PART_SIZE), "--in-flight", "1", images]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(tmp_path.glob("part-*.npy")), "the first part", 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in tmp_path.glob("part-*.npy")}
    assert len(there) < COUNT / PART_SIZE
    assert embed_into(tmp_path, triton.url) == 0  # without naming the images again
    assert len(read_parts(tmp_path)) == COUNT
    assert {path: path.stat().st_mtime_ns for path in there} == there


def test_shares_of_several_processes_are_all_of_it(triton, images, tmp_path):
    for share in ("1/2", "2/2"):
        arguments = "--share", share, "--part-size", PART_SIZE, images
        assert embed_into(tmp_path, triton.url, *arguments) == 0
        parts = [int(path.stem[-5:]) for path in tmp_path.glob("part-*.npy")]
        assert sorted(parts) == list(range(0, 16, 2) if share == "1/2" else range(16))


def test_parts_of_two_encoders_do_not_mix(triton, images, tmp_path, capsys):
    (tmp_path / "job.json").write_text('{"encoder_id": "another", "part_size": 10}')
    (tmp_path / "paths.jsonl").write_text(json.dumps(str(images / "000.png")))
    assert embed_into(tmp_path, triton.url) == 2
    assert "begun with encoder another" in capsys.readouterr().err
    assert not list(tmp_path.glob("part-*"))
