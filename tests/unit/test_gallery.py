import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from reverse_image_search.gallery import (
    Gallery,
    GalleryError,
    GalleryFile,
    GalleryImage,
    GalleryMetadata,
    make_thumbnail,
    pixel_digest,
    rows_of,
)
from reverse_image_search.gallery_writer import write_gallery
from tests.running import REPO_ROOT

BUILD_COMMAND = "reverse_image_search/bin/build_models.sh"
METADATA = GalleryMetadata("gallery1", "encoder1", "Shoes", ["Bag", "Boot"], 28, 28, True, True)


def image(number: int, label: str | None = "Boot") -> GalleryImage:
    pixels = np.full((2, 3), 10 * number, np.uint8)
    source = f"shoes/{number}.png"
    return GalleryImage(number, source, label, 3, 2, pixel_digest(pixels), make_thumbnail(pixels))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A gallery of four images with gaps in their ids, and of three queries."""
    path = tmp_path / "gallery" / "gallery.sqlite"
    write_gallery(
        path,
        METADATA,
        images=[image(2), image(3, "Bag"), image(7), image(20, None)],
        queries=[image(0, "Bag"), image(1), image(5, "Bag")],
        embeddings=np.eye(4, 5, dtype=np.float32),
    )
    return path


def test_what_was_written_is_read(path):
    gallery = Gallery(path)

    assert gallery.metadata == METADATA
    assert (gallery.gallery_id, gallery.encoder_id) == ("gallery1", "encoder1")
    assert len(gallery) == 4
    assert gallery.ids().tolist() == [2, 3, 7, 20]
    assert gallery.labels() == ["Boot", "Bag", "Boot", None]
    assert gallery.images([7, 2, 7]) == [image(7), image(2), image(7)]
    assert gallery.images([7])[0].pixels.tolist() == [[70, 70, 70], [70, 70, 70]]
    ids, embeddings = gallery.embeddings()
    assert ids.tolist() == [2, 3, 7, 20]
    assert (embeddings == np.eye(4, 5)).all()
    assert gallery.query_count == 3
    assert gallery.queries([5, 0]) == [image(5, "Bag"), image(0, "Bag")]


def test_ids_by_label(path):
    gallery = Gallery(path)

    assert gallery.ids("Boot").tolist() == [2, 7]
    assert gallery.query_ids().tolist() == [0, 1, 5]
    assert gallery.query_ids("Bag").tolist() == [0, 5]
    assert gallery.query_ids("Hat").tolist() == []


def test_images_of_files(tmp_path):
    """Two images in three files, one with a name that is not UTF-8."""
    path = tmp_path / "gallery.sqlite"
    write_gallery(
        path,
        METADATA,
        images=[image(2), image(3, "Bag"), image(4, None)],
        files=[
            GalleryFile(b"/photos/boots/a_\xff.jpg", 2, 10, 1),
            GalleryFile(b"/photos/bags/50%.jpg", 3, 20, 2),
            GalleryFile(b"/photos/boots/copy.jpg", 2, 10, 3),
        ],
    )
    gallery = Gallery(path)

    assert [os.fsencode(each) for each in gallery.paths(2)] == [
        b"/photos/boots/a_\xff.jpg",
        b"/photos/boots/copy.jpg",
    ]
    assert gallery.paths(4) == []
    assert gallery.folders() == {"/photos/bags": 1, "/photos/boots": 2}
    assert gallery.label_counts() == {"Bag": 1, "Boot": 1}
    assert gallery.ids_matching("SHOES/").tolist() == [2, 3, 4]  # of the source
    assert gallery.ids_matching("boots/copy").tolist() == [2]
    assert gallery.ids_matching("_").tolist() == [2]
    assert gallery.ids_matching("%").tolist() == [3]
    assert gallery.ids_matching("'\"").tolist() == []


def test_gallery_of_an_earlier_version_is_named(path):
    with sqlite3.connect(path) as database:
        database.executescript("DROP TABLE files; PRAGMA user_version = 0")

    with pytest.raises(GalleryError, match=f"another version.*Rebuild it with {BUILD_COMMAND}"):
        Gallery(path)


@pytest.mark.parametrize("ids", [[4], [2, -1], [10**18]])
def test_unknown_ids(path, ids):
    with pytest.raises(KeyError):
        Gallery(path).images(ids)


def test_missing_ids_are_named(path):
    gallery = Gallery(path)

    assert gallery.missing(gallery.ids()) == []
    assert gallery.missing([int(gallery.ids()[0]), -1, 10**9]) == [-1, 10**9]


def test_more_ids_than_one_statement_takes(tmp_path):
    path = tmp_path / "gallery.sqlite"
    thumbnail = make_thumbnail(np.zeros((1, 1), np.uint8))
    images = (GalleryImage(i, str(i), None, 1, 1, b"", thumbnail) for i in range(1201))
    write_gallery(path, METADATA, images)

    found = Gallery(path).images(range(1200, -1, -1))

    assert [each.id for each in found] == list(range(1200, -1, -1))


def test_ids_are_never_reused(path):
    """What an update relies on: the id of a removed image does not come back."""

    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM images WHERE id = 20")
        columns = "source, label, width, height, sha256, thumbnail"
        database.execute(f"INSERT INTO images ({columns}) VALUES ('x', NULL, 1, 1, x'', x'')")

    assert Gallery(path).ids().tolist() == [2, 3, 7, 21]


def test_reading_writes_nothing(path):
    """As on a read-only mount: no journal or lock file beside the gallery."""
    path.chmod(0o444)
    path.parent.chmod(0o555)
    try:
        gallery = Gallery(path)
        assert gallery.images([7]) == [image(7)]
        assert list(path.parent.iterdir()) == [path]
        gallery.close()
    finally:
        path.parent.chmod(0o755)


def test_a_writer_that_fails_leaves_no_readable_gallery(tmp_path):
    path = tmp_path / "gallery.sqlite"

    def fail():
        yield image(1)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_gallery(path, METADATA, fail())

    with pytest.raises(GalleryError):
        Gallery(path)


def test_threads_share_a_gallery(path):
    gallery = Gallery(path)
    ids = [[2, 3], [7], [20, 2], [3]] * 200

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(gallery.images, ids))

    assert [[each.id for each in images] for images in found] == ids


def test_missing_gallery_names_the_build_command(tmp_path):
    path = tmp_path / "gallery.sqlite"

    with pytest.raises(GalleryError, match=f"no gallery at {path}.*{BUILD_COMMAND}"):
        Gallery(path)
    assert not path.exists()


@pytest.mark.parametrize("damage", ["empty", "cut short", "foreign", "no metadata"])
def test_damaged_file_is_named(path, damage):

    content = path.read_bytes()
    if damage == "no metadata":
        with sqlite3.connect(path) as database:
            database.execute("DELETE FROM metadata WHERE key = 'encoder_id'")
    else:
        path.write_bytes(
            {"empty": b"", "cut short": content[:-1], "foreign": b"text " * 1000}[damage]
        )

    with pytest.raises(GalleryError, match=f"{path} cannot be read.*{BUILD_COMMAND}"):
        Gallery(path)


def test_damage_behind_the_first_page_is_named_when_read(path):
    content = bytearray(path.read_bytes())
    page = int.from_bytes(content[16:18], "big")
    content[page:] = b"\xff" * (len(content) - page)
    path.write_bytes(content)

    with pytest.raises(GalleryError, match=f"{path} cannot be read.*{BUILD_COMMAND}"):
        Gallery(path).images([2])


def test_grayscale_and_rgb_of_the_same_pixels_have_one_digest():
    gray = np.arange(6, dtype=np.uint8).reshape(2, 3)
    rgb = np.stack([gray] * 3, axis=-1)
    other = rgb.copy()
    other[0, 0, 0] += 1

    assert pixel_digest(gray) == pixel_digest(rgb) != pixel_digest(other)


@pytest.mark.parametrize(
    ("shape", "kind", "size"),
    [
        ((28, 28), b"\x89PNG", (28, 28)),
        ((64, 10, 3), b"\x89PNG", (64, 10, 3)),
        ((65, 65), b"RIFF", (65, 65, 3)),
        ((300, 600, 3), b"RIFF", (128, 256, 3)),
    ],
)
def test_thumbnails(shape, kind, size):
    pixels = np.full(shape, 77, np.uint8)

    file = make_thumbnail(pixels)

    assert file[:4] == kind
    shown = GalleryImage(1, "x", None, 1, 1, b"", file).pixels
    assert shown.shape == size
    assert abs(shown.astype(int) - 77).max() <= 1


def test_app_side_needs_no_torch():
    """The app's container has no torch: gallery, client and search must not import it."""
    code = (
        "import sys, reverse_image_search.gallery, reverse_image_search.client.client, "
        "reverse_image_search.client.search; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPO_ROOT).returncode == 0


def test_rows_of_ids():
    """Below, among, and above the gallery's own; -1 pads what a server returns."""
    rows = rows_of(np.array([[3, 9], [4, -1]]), np.array([3, 5, 9]))
    assert rows.tolist() == [[0, 2], [-1, -1]]
    assert rows_of(np.array([10]), np.array([3, 5, 9])).tolist() == [-1]
