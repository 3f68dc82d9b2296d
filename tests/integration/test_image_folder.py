"""A folder of photos, built, served, searched, and brought up to date while it is served."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverse_image_search import build_models, layout
from reverse_image_search.client import Client
from reverse_image_search.client.search import search_gallery
from reverse_image_search.encoders import ENCODERS
from reverse_image_search.gallery import Gallery
from reverse_image_search.indexes import INDEXES
from tests.integration.toy_build import GRID
from tests.running import REPO_ROOT, Triton, wait_until

SIZES = ((300, 200), (200, 300), (640, 480), (40, 30))


def photo(seed: int) -> Image.Image:
    """Soft blobs of color that no other seed has."""
    colors = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(colors).resize(SIZES[seed % len(SIZES)], Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """40 photos in two folders, a copy of one of them, and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(40):
        target = folder / ("left", "right")[i % 2] / f"{i}.jpg"
        target.parent.mkdir(exist_ok=True)
        photo(i).save(target, quality=90)
    (folder / "copy.jpg").write_bytes((folder / "left" / "0.jpg").read_bytes())
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.mark.parametrize("index", INDEXES)
def test_a_folder_is_searched_and_follows_its_files(
    index, photos, tmp_path, monkeypatch, capsys, start_triton: Callable[..., Triton], request
):
    if INDEXES[index].database:
        request.getfixturevalue("milvus")
    monkeypatch.setitem(ENCODERS, "grid", GRID)
    photos = shutil.copytree(photos, tmp_path / "photos")
    build = ["--images", str(photos), "--output-dir", str(tmp_path)]
    assert build_models.main([*build, "--encoder", "grid", "--index", index]) == 0
    output = capsys.readouterr().out
    assert "40 images, 1 exact copies, 1 unreadable" in output

    client = Client(start_triton(tmp_path).url)
    gallery = Gallery(layout.gallery_file(tmp_path))

    def first_found(image) -> tuple[float, list[str]]:
        found = search_gallery(client, Gallery(layout.gallery_file(tmp_path)), image)
        paths = Gallery(layout.gallery_file(tmp_path)).paths(found.ids[0])
        return float(found.scores[0]), [path.relative_to(photos).as_posix() for path in paths]

    assert first_found(Image.open(photos / "left" / "0.jpg"))[1] == ["copy.jpg", "left/0.jpg"]
    for name in ("left/2.jpg", "right/39.jpg"):
        score, paths = first_found(Image.open(photos / name))
        assert paths == [name]
        assert score == pytest.approx(1, abs=1e-5)
    assert gallery.label_counts() == {"left": 19, "right": 20}
    assert gallery.metadata.is_photos

    before = times_of_files(tmp_path)
    assert build_models.main(build) == 0
    assert "Nothing has changed" in capsys.readouterr().out
    assert times_of_files(tmp_path) == before

    photo(100).save(photos / "left" / "new.jpg", quality=90)
    (photos / "left" / "2.jpg").rename(photos / "right" / "moved.jpg")
    (photos / "right" / "39.jpg").unlink()
    assert build_models.main(build) == 0
    assert "1 added, 0 changed, 1 removed, 1 moved, 39 unchanged" in capsys.readouterr().out
    # The running server takes the new index over; a database has changed in place.
    timeout = 1 if INDEXES[index].database else 30
    new = ["left/new.jpg"]
    wait_until(lambda: first_found(photo(100))[1] == new, "the new photo is found", timeout)
    version = layout.served_version(tmp_path / layout.MODEL_REPO, "vector_similarity")
    assert version == (1 if INDEXES[index].database else 2)
    assert first_found(photo(2))[1] == ["right/moved.jpg"]
    assert first_found(photo(39))[1] not in (["right/39.jpg"], [])
    updated = Gallery(layout.gallery_file(tmp_path))
    assert updated.gallery_id == gallery.gallery_id
    assert set(gallery.ids()) - set(updated.ids()) == {_id_of(gallery, "39.jpg")}


def times_of_files(folder: Path) -> dict[Path, int]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".build" not in path.parts)
    return {path: path.stat().st_mtime_ns for path in paths}


def _id_of(gallery: Gallery, name: str) -> int:
    return next(int(i) for i in gallery.ids() if gallery.paths(i)[0].name == name)


def test_a_killed_build_goes_on(photos, tmp_path):
    def build(kill_at: int) -> subprocess.CompletedProcess:
        module = [sys.executable, "-m", "tests.integration.toy_build", str(kill_at)]
        options = ["--images", str(photos), "--encoder", "grid", "--output-dir", str(tmp_path)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*module, *options], cwd=REPO_ROOT, env=environment, capture_output=True, text=True
        )

    assert build(15).returncode == -9
    assert not (tmp_path / "gallery").exists()
    killed = Gallery(tmp_path / ".build" / "gallery.sqlite")
    first = dict(zip(*map(np.ndarray.tolist, killed.embeddings()), strict=True))
    assert len(first) in (14, 15)  # the copy may be among them

    result = build(0)
    assert result.returncode == 0, result.stderr
    assert "15 unchanged" in result.stdout
    gallery = Gallery(layout.gallery_file(tmp_path))
    ids, embeddings = gallery.embeddings()
    assert {
        i: e for i, e in zip(ids.tolist(), embeddings.tolist(), strict=True) if i in first
    } == first
    assert not (tmp_path / ".build" / "gallery.sqlite").exists()
