import json
import subprocess
import sys

import numpy as np
import pytest

from reverse_image_search.gallery import (
    Gallery,
    GalleryError,
    open_gallery,
    read_build_id,
    write_gallery,
)
from tests.running import REPO_ROOT

BUILD_COMMAND = "reverse_image_search/bin/build_models.sh"


@pytest.fixture
def folder(tmp_path):
    """A gallery of three boots and bags on disk, with two queries."""
    write_gallery(
        tmp_path / "gallery",
        Gallery(
            build_id="abc123",
            dataset="Fashion-MNIST",
            class_names=["Bag", "Boot"],
            images=np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2),
            labels=np.array([1, 0, 1]),
            query_images=np.full((2, 2, 2), 7, np.uint8),
            query_labels=np.array([0, 1]),
        ),
    )
    return tmp_path / "gallery"


def test_what_was_written_is_read(folder):
    gallery = open_gallery(folder)

    assert len(gallery) == 3
    assert gallery.build_id == read_build_id(folder) == "abc123"
    assert gallery.images[2].tolist() == [[8, 9], [10, 11]]
    assert gallery.labels.tolist() == [1, 0, 1]
    assert gallery.query_images.shape == (2, 2, 2)
    assert [gallery.label_name(i) for i in range(3)] == ["Boot", "Bag", "Boot"]
    assert gallery.source_name(2) == "Fashion-MNIST train #2"


def test_images_stay_on_disk_until_they_are_looked_at(folder):
    gallery = open_gallery(folder)

    assert isinstance(gallery.images, np.memmap)
    assert not gallery.images.flags.writeable


def test_app_side_needs_no_torch():
    """The app's container has no torch: gallery, client and search must not import it."""
    code = (
        "import sys, reverse_image_search.gallery, reverse_image_search.client.client, "
        "reverse_image_search.client.search; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT).returncode == 0


def test_missing_gallery_names_the_build_command(tmp_path):
    with pytest.raises(GalleryError, match=f"no gallery at {tmp_path}.*{BUILD_COMMAND}"):
        open_gallery(tmp_path)


@pytest.mark.parametrize("name", ["images", "labels", "query_images", "query_labels"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut short", "foreign"])
def test_damaged_array_is_named(folder, name, damage):
    path = folder / f"{name}.npy"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {"empty": b"", "cut short": content[:-1], "foreign": b"no array" * 20}[damage]
        )

    with pytest.raises(GalleryError, match=f"{name}.npy.*{BUILD_COMMAND}"):
        open_gallery(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"build_id": "abc123"}'])
def test_damaged_manifest_is_named(folder, content):
    (folder / "manifest.json").write_text(content)

    for read in (open_gallery, read_build_id):
        with pytest.raises(GalleryError, match=f"manifest.json.*{BUILD_COMMAND}"):
            read(folder)


def test_arrays_of_different_lengths_are_refused(folder):
    np.save(folder / "labels.npy", np.array([1, 0]))

    with pytest.raises(GalleryError, match="3 images but 2 labels"):
        open_gallery(folder)


def test_arrays_of_another_build_are_refused(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"count": 60000}))

    with pytest.raises(GalleryError, match="has 3 images, its manifest says 60000"):
        open_gallery(folder)
