"""The page of a gallery of photos, with Streamlit's AppTest and a stand-in for the server."""

from __future__ import annotations

import hashlib
import os

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.app.browse import browsed_ids, short_names
from reverse_image_search.app.originals import NoOriginalError, read_original, shown_path
from reverse_image_search.app.region_box import Region, parse_region
from reverse_image_search.app.results import narrow
from reverse_image_search.app.score_scale import meaning_of, score_scale
from reverse_image_search.gallery import (
    Gallery,
    GalleryFile,
    GalleryImage,
    GalleryMetadata,
    make_thumbnail,
)
from reverse_image_search.gallery_writer import write_gallery
from tests.image_corpus import encoded

METADATA = GalleryMetadata(
    gallery_id="photos",
    encoder_id="encoder1",
    dataset="photos",
    class_names=["cats", "dogs"],
    encoder_height=8,
    encoder_width=8,
    encoder_is_grayscale=False,
    shows_objects_on_black=False,
    is_photos=True,
)
# Quantiles at 0, 5, 25, 50, 75, 95, 100 %.
SCALE = {
    "random_pairs": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    "perturbed_copies": [0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0],
}


@pytest.fixture
def gallery(tmp_path):
    """Ten photos of 60 x 40 pixels in photos/cats and photos/dogs/puppies, with EXIF data."""
    random = np.random.default_rng(0)
    images, files = [], []
    for number in range(10):
        folder = tmp_path / "photos" / ("cats" if number < 6 else "dogs/puppies")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number}.jpg"
        pixels = np.kron(random.integers(0, 256, (4, 6, 3)), np.ones((10, 10, 1))).astype(np.uint8)
        exif = Image.Exif()
        exif[0x010F] = "SECRET CAMERA"
        path.write_bytes(encoded(Image.fromarray(pixels), "JPEG", exif=exif))
        digest = hashlib.sha256(path.read_bytes()).digest()
        label = "cats" if number < 6 else "dogs"
        images.append(
            GalleryImage(number, str(path), label, 60, 40, digest, make_thumbnail(pixels))
        )
        files.append(GalleryFile(os.fsencode(path), number, path.stat().st_size, 0))
    path = tmp_path / "gallery" / "gallery.sqlite"
    write_gallery(path, METADATA, images, files=files)
    return Gallery(path)


def test_browsing_by_label_folder_and_text(gallery, tmp_path):
    assert browsed_ids(gallery).tolist() == list(range(10))
    assert browsed_ids(gallery, label="dogs").tolist() == [6, 7, 8, 9]
    assert browsed_ids(gallery, folder=str(tmp_path / "photos" / "cats")).tolist() == [*range(6)]
    assert browsed_ids(gallery, text="puppies/8.J").tolist() == [8]
    assert browsed_ids(gallery, label="cats", text="puppies").tolist() == []
    # Not the folder whose name only begins like this one.
    assert browsed_ids(gallery, folder=str(tmp_path / "photos" / "cat")).tolist() == []


def test_folders_are_shown_without_what_all_begin_with():
    assert short_names(["/a/b", "/a/b/c", "/a/b/d/e"]) == {
        "/a/b": "b",
        "/a/b/c": "b/c",
        "/a/b/d/e": "b/d/e",
    }


def test_original_is_read_without_its_metadata(gallery):
    (image,) = gallery.images([3])

    assert read_original(gallery, image).shape == (40, 60, 3)
    with pytest.raises(NoOriginalError, match="which file"):
        read_original(gallery, image._replace(id=99))


@pytest.mark.parametrize("change", ["gone", "another image", "a link elsewhere", "a pipe"])
def test_only_the_file_that_was_indexed_is_shown(gallery, tmp_path, change):
    (image,) = gallery.images([3])
    (path,) = gallery.paths(3)
    other = tmp_path / "secret.jpg"
    other.write_bytes(encoded(Image.new("RGB", (9, 9)), "JPEG"))
    path.unlink()
    if change == "another image":
        path.write_bytes(other.read_bytes())
    elif change == "a link elsewhere":
        path.symlink_to(other)
    elif change == "a pipe":
        os.mkfifo(path)

    with pytest.raises(NoOriginalError, match=r"gone|changed"):
        read_original(gallery, image)


def test_path_that_is_not_utf_8_is_shown_with_escapes():
    from pathlib import Path

    assert shown_path(Path(os.fsdecode(b"/a/\xff\n.jpg"))) == "/a/\\xff\n.jpg"


def test_region_is_cut_in_percent_and_never_empty():
    pixels = np.arange(200).reshape(10, 20)

    assert (Region(25, 50, 75, 100).cut(pixels) == pixels[5:10, 5:15]).all()
    assert Region(99, 99, 100, 100).cut(np.zeros((3, 3))).shape == (1, 1)


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("10-20-30-40", Region(10, 20, 30, 40)),
        ("0-0-100-100", None),  # all of it
        ("30-20-10-40", None),
        ("10-20-30", None),
        ("10-20-30-101", None),
        ("", None),
        ("a-b-c-d", None),
    ],
)
def test_region_in_the_address(text, region):
    assert parse_region(text) == region
    assert region is None or str(region) == text


def test_results_above_a_threshold_without_the_query(gallery):
    images, scores = gallery.images([4, 2, 0, 1]), np.array([1, 0.9, 0.7, 0.2])

    def ids(**conditions):
        kept, kept_scores = narrow(images, scores, **conditions)
        assert len(kept) == len(kept_scores)
        return [image.id for image in kept]

    assert ids(count=2) == [4, 2]
    assert ids(count=9, lowest=0.7) == [4, 2, 0]
    assert ids(count=2, left_out={images[0].sha256}) == [2, 0]
    assert ids(count=2, lowest=2.0) == []


def test_meaning_of_a_score():
    assert meaning_of(0.45, SCALE) == (
        "The best score, 0.4500, is higher than that of 85 % of random pairs, "
        "0 % of altered copies of an image."
    )


def test_scale_without_any_results():
    chart = score_scale(SCALE, np.array([]), 0.8)

    assert 'class="lowest" style="left:80.00%"' in chart
    assert "best score" not in chart
