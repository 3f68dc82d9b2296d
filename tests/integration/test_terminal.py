"""search.sh and find_duplicates.sh on a real server: what they print, and their exit codes."""

import csv
import io
import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import gallery_file
from reverse_image_search.terminal import duplicates, search
from tests.running import BIN, run_script

# Names that a terminal, a line-based tool, JSON, and HTML have to be kept safe from.
NAMES = [b"/photos/plain.jpg", b"/photos/new\nline 'q\".jpg", "/photos/😀.jpg".encode(),
         b"/photos/not \xff utf-8.jpg", b"/photos/\x1b[31m<b>.jpg"]  # fmt: skip


@pytest.fixture(scope="module")
def file_build(small_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small build, but its first images are of files: ids 0 to 3, and 0 has an exact copy."""
    folder = tmp_path_factory.mktemp("file_build")
    target = gallery_file(folder)
    target.parent.mkdir()
    shutil.copy(gallery_file(small_build), target)
    with sqlite3.connect(target) as database:
        rows = [(name, max(0, i - 1), 100, i) for i, name in enumerate(NAMES)]
        database.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", rows)
    return folder


@pytest.fixture
def run(triton, file_build, capfdbinary):
    """``run(main, *arguments)``: exit code, standard output and error of a command, as bytes."""

    def call(main, *arguments: object, output_dir: Path = file_build) -> tuple[int, bytes, bytes]:
        options = ["--url", triton.url, "--output-dir", str(output_dir)]
        capfdbinary.readouterr()
        code = main([*options, *map(str, arguments)])
        return (code, *capfdbinary.readouterr())

    return call


@pytest.fixture
def images(gallery: Gallery, tmp_path: Path) -> Path:
    """A folder with files of gallery images 0 to 3, an empty file, and a hidden one."""
    folder = tmp_path / "queries"
    folder.mkdir()
    for image in gallery.images(range(4)):
        Image.fromarray(image.pixels).save(folder / f"{image.id}.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_paths_are_the_bytes_of_the_file_names(run, images):
    code, out, _ = run(search.main, "-k", 1, "--paths", "-0", *sorted(images.glob("[0-3].png")))

    assert code == 0
    assert out == b"".join(name + b"\0" for name in NAMES)


def test_a_table_has_one_printable_line_for_each_path(run, images):
    code, out, error = run(search.main, "-k", 1, images)

    assert code == 0
    lines = out.decode().splitlines()
    assert len(lines) == 4 + len(NAMES)
    assert all(line.isprintable() for line in lines)
    assert r"/photos/new\nline 'q" in lines[2]
    assert r"/photos/not \xff utf-8.jpg" in out.decode()
    assert b"empty.png: The file is empty (0 bytes).\n" in error
    assert b"1 of 5 files could not be read" in error


def test_json_has_the_neighbors_of_the_client(run, client, gallery, images):
    code, out, _ = run(search.main, "--json", "-k", 5, images)

    assert code == 0
    found = {Path(item["query"]).name: item for item in json.loads(out)}
    assert found["empty.png"]["error"] == "The file is empty (0 bytes)."
    for image in gallery.images(range(4)):
        neighbors = client.search([image.pixels])
        matches = found[f"{image.id}.png"]["matches"]
        assert [match["id"] for match in matches] == neighbors.ids[0, :5].tolist()
        scores = [match["score"] for match in matches]
        np.testing.assert_allclose(scores, neighbors.scores[0, :5], atol=1e-4)
        assert matches[0]["label"] == image.label
    paths = [path for i in range(4) for path in found[f"{i}.png"]["matches"][0]["paths"]]
    assert [os.fsencode(path) for path in paths] == NAMES


def test_csv_has_a_row_for_each_path(run, images):
    code, out, _ = run(search.main, "--csv", "-k", 1, images / "0.png")

    assert code == 0
    rows = list(csv.DictReader(io.StringIO(out.decode(errors="surrogateescape"))))
    assert [os.fsencode(row["path"]) for row in rows] == NAMES[:2]
    assert {(row["rank"], row["id"], row["query"]) for row in rows} == {
        ("1", "0", str(images / "0.png"))
    }


def test_a_contact_sheet_shows_names_as_text(run, images, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    code, out, error = run(search.main, "--open", "-k", 3, images)

    assert code == 0
    assert b"no desktop to show it on" in error
    sheet = Path(out.decode().strip())
    text = sheet.read_text()
    sheet.unlink()
    assert text.count("<section>") == 4
    assert text.count("<img") == 4 + 4 * 3
    assert r"/photos/\x1b[31m&lt;b&gt;.jpg" in text
    assert 'href="file:///photos/not%20%FF%20utf-8.jpg"' in text
    assert 'src="data:image/png;base64,' in text
    assert "http:" not in text.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["0.png"], 0),
        (["--threshold", "0.9", "noise.png", "0.png"], 0),
        (["--threshold", "1", "noise.png"], 1),
        (["no-such-file.png"], 2),
        (["no-such-file.png", "0.png"], 2),
        (["empty.png"], 2),
    ],
)
def test_the_exit_code_is_that_of_grep(run, images, monkeypatch, arguments, code):
    noise = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(noise).save(images / "noise.png")
    monkeypatch.chdir(images)

    assert run(search.main, *arguments)[0] == code


def test_fewer_neighbors_than_asked_for_are_said(run, images):
    code, out, error = run(search.main, "-k", 1000, images / "0.png", images / "1.png")

    assert code == 0
    assert len(out.splitlines()) >= 2 * 101
    assert error.count(b"the index returns 100 neighbors") == 1
    assert b"--top-k N" in error


def test_images_that_are_not_files_are_shown_by_id_and_source(run, images, small_build):
    code, out, _ = run(search.main, "-k", 1, images / "2.png", output_dir=small_build)
    assert code == 0
    assert b"id 2  Fashion-MNIST train #2\n" in out

    code, out, error = run(search.main, "--paths", images / "2.png", output_dir=small_build)
    assert (code, out) == (2, b"")
    assert b"are not files, so there are no paths" in error


def test_scripts_use_the_server_of_the_settings(triton, images):
    """Standard input, and a server that does not run."""
    command = [BIN / "search.sh", "--json", "-k", "1", "-"]
    with (images / "3.png").open("rb") as file:
        result = subprocess.run(
            command, stdin=file, capture_output=True, env={**os.environ, **triton.environment}
        )
    assert result.returncode == 0, result.stderr
    (item,) = json.loads(result.stdout)
    assert (item["query"], item["matches"][0]["id"]) == ("-", 3)

    settings = triton.environment | {"TRITON_HTTP_PORT": "9"}
    for script in ("search.sh", "find_duplicates.sh"):
        arguments = [str(images / "3.png")] if script == "search.sh" else ["--threshold", "0.9"]
        failed = run_script(script, *arguments, **settings)
        assert failed.returncode == 2
        assert "Triton is not reachable" in failed.stderr
        assert (
            "Start it with reverse_image_search/bin/start_inference_server_cpu.sh" in failed.stderr
        )


def test_duplicates_are_those_of_a_plain_loop(run, gallery_embeddings):
    """Fashion-MNIST has near-duplicates; all its images have one size and, but for four, no age."""
    similarity = gallery_embeddings @ gallery_embeddings.T
    threshold = np.sort(similarity[np.triu_indices(len(similarity), 1)])[-40] - 1e-4
    expected, free = [], set(range(len(similarity)))
    for kept in [*range(4, len(similarity)), *range(4)]:  # files are younger than no files
        close = np.flatnonzero(similarity[kept] >= threshold).tolist()
        members = [i for i in close if i in free and i != kept]
        if kept in free and members:
            expected.append({kept, *members})
            free -= expected[-1]
    if 0 in free:
        expected.append({0})  # of two files

    code, out, error = run(duplicates.main, "--threshold", threshold, "--json")

    assert code == 0
    groups = json.loads(out)
    found = [{image["id"] for image in [g["keep"], *g["duplicates"]]} for g in groups]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
    assert f"{len(expected)} groups".encode() in error
    assert b"nothing was deleted" in error


def test_exact_copies_are_a_group_with_the_oldest_kept(run):
    code, out, _ = run(duplicates.main, "--threshold", "1", "--csv")

    assert code == 0
    rows = [row for row in csv.DictReader(io.StringIO(out.decode())) if row["id"] == "0"]
    assert [(row["keep"], os.fsencode(row["path"])) for row in rows] == [
        ("yes", NAMES[0]),
        ("no", NAMES[1]),
    ]


def test_without_duplicates_the_exit_code_is_1(run, small_build):
    code, out, error = run(duplicates.main, "--threshold", "1", output_dir=small_build)

    assert (code, out) == (1, b"")
    assert b"no near-duplicates among 3,000" in error


def test_the_default_threshold_is_the_gallerys_own(run, file_build, gallery, tmp_path):
    code, _, error = run(duplicates.main)
    assert code == 0  # of the exact copy, at least
    assert f"a score of {gallery.metadata.duplicate_threshold:.3f} or more".encode() in error

    shutil.copytree(file_build, tmp_path, dirs_exist_ok=True)
    with sqlite3.connect(gallery_file(tmp_path)) as database:
        database.execute("UPDATE metadata SET value = 'null' WHERE key = 'duplicate_threshold'")
    code, _, error = run(duplicates.main, output_dir=tmp_path)
    assert code == 2
    assert b"--threshold 0.95" in error
