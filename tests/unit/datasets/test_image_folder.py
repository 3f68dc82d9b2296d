"""Folders as people have them: what is found, read, left out with a reason, and labeled."""

import errno
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from reverse_image_search.datasets import DatasetError, DatasetOptions, LabeledImage
from reverse_image_search.datasets.image_finder import find_images
from reverse_image_search.datasets.image_folder import ImageFolder, load_image_folder
from reverse_image_search.gallery import Gallery, GalleryImage, GalleryMetadata
from reverse_image_search.gallery_writer import (
    GalleryWriter,
    continue_gallery,
    publish_gallery,
)
from reverse_image_search.image_reader import ImageReader
from tests.image_corpus import data_of, exif_of, quadrants

METADATA = GalleryMetadata("gallery1", "encoder1", "photos", [], 8, 8, False, False)
# Every name that Linux allows: a newline, quotes, an emoji, bytes that are not UTF-8.
NAMES = [
    b"a\nb.png",
    b"\"quoted\" 'too'.png",
    "🥾 \u202egnp.png".encode(),
    b"caf\xe9.png",
    b"-rf.png",
]


def write_image(path: Path, shade: int = 100, **options) -> Path:
    """An image of its own: no two shades have the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 9, 3), shade, np.uint8)
    pixels[0] = np.arange(9)[:, None]
    Image.fromarray(pixels).save(path, **options)
    return path


def load(*folders: Path, **options) -> ImageFolder:
    return load_image_folder(DatasetOptions(folders=folders, **options))


def sync(work: Path, *folders: Path, **options):
    """Bring the gallery at `work` up to date, as a build does; the mean shade is the embedding."""
    dataset = load(*folders, **options)
    with GalleryWriter(work) as writer:
        folders = [str(folder) for folder in folders] or writer.metadata()["build_options"][
            "folders"
        ]
        writer.set_metadata(replace(METADATA, build_options={"folders": folders}))
        read = []
        for image in dataset.new_images(writer):
            read.append(os.path.basename(image.file.path))
            writer.add(_row(image), np.array([image.pixels.mean()]), image.file)
        dataset.finish(writer)
    return dataset, read


def _row(image: LabeledImage) -> GalleryImage:
    file = image.file
    return GalleryImage(0, image.source, image.label, *file.photo.size, file.sha256, file.thumbnail)


def ids_by_name(work: Path) -> dict[str, int]:
    gallery = Gallery(work)
    return {path.name: int(i) for i in gallery.ids() for path in gallery.paths(i)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images in two folders; the first and the third are the same file."""
    write_image(tmp_path / "photos" / "boots" / "1.png", 10)
    write_image(tmp_path / "photos" / "bags" / "2.png", 20)
    write_image(tmp_path / "photos" / "bags" / "3.png", 10)
    return tmp_path / "photos"


def test_formats_and_modes_become_upright_rgb(tmp_path):
    top = tmp_path / "photos"
    top.mkdir()
    image = quadrants()  # red at the upper left
    written = {
        "cmyk.tiff": {"image": image.convert("CMYK")},
        "16_bit.tiff": {"image": Image.fromarray(np.full((48, 64), 40_000, np.uint16))},
        "float.tiff": {"image": Image.fromarray(np.linspace(0, 1, 48 * 64).reshape(48, 64))},
        "lab.tiff": {"image": Image.new("LAB", (64, 48), (150, 128, 128))},
        "palette.png": {"image": image.quantize(8)},
        "alpha.webp": {"image": image.convert("RGBA")},
        "turned.jpg": {"image": image, "exif": exif_of(6)},
        "turned.tiff": {"image": image, "exif": exif_of(6)[6:]},
        "jpeg_2000.jp2": {"image": image},
        "photo.AVIF": {"image": image},
        "plain.ppm": {"image": image},
    }
    for name, options in written.items():
        options.pop("image").save(top / name, **options)
    (top / "animated.gif").write_bytes(data_of("gif_animated.gif"))
    (top / "no_suffix").write_bytes(data_of("png_RGB.png"))

    dataset, read = sync(tmp_path / "work.sqlite", top)

    assert dataset.found.unreadable == {}
    assert sorted(map(os.fsdecode, read)) == sorted([*written, "animated.gif", "no_suffix"])
    gallery = Gallery(tmp_path / "work.sqlite")
    for image_id in gallery.ids():
        (shown,), (path,) = gallery.images([image_id]), gallery.paths(image_id)
        assert shown.pixels.shape == ((64, 48, 3) if "turned" in path.name else (48, 64, 3)), path


def test_what_cannot_be_read_is_named_with_its_reason(tmp_path, capsys):
    top = tmp_path / "photos"
    good = write_image(top / "good.png")
    (top / "empty.jpg").touch()
    (top / "text.jpg").write_text("not an image")
    (top / "cut_short.png").write_bytes(good.read_bytes()[:60])
    (top / "phone.heic").write_bytes(data_of("heic.jpg"))
    (top / "notes.txt").write_text("passed over")
    os.mkfifo(top / "fifo.png")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(top / "socket.png"))
    write_image(tmp_path / "elsewhere.png")
    (top / "outside.png").symlink_to(tmp_path / "elsewhere.png")
    (top / "dangling.png").symlink_to(top / "nothing.png")
    write_image(top / ".hidden" / "thumbnail.png", 3)
    write_image(top / ".hidden.png", 4)

    dataset, read = sync(tmp_path / "work.sqlite", top)
    server.close()

    assert read == [b"good.png"]
    assert dataset.found.other_count == 1
    output = capsys.readouterr().out
    reasons = {Path(os.fsdecode(p)).name: why for p, why in dataset.found.unreadable.items()}
    expected = {
        "empty.jpg": "empty",
        "text.jpg": "not an image",
        "cut_short.png": "damaged or cut short",
        "phone.heic": "HEIC is not supported",
        "fifo.png": "not a regular file",
        "socket.png": "not a regular file",
        "outside.png": "outside the folder",
        "dangling.png": "No such file",
    }
    assert reasons.keys() == expected.keys()
    for name, reason in expected.items():
        assert reason in reasons[name]
        assert f"photos/{name}: {reasons[name]}" in output
    assert "1 images, 0 exact copies, 8 unreadable, 1 other files" in output


def test_a_file_that_vanishes_costs_itself_only(folder, tmp_path):
    dataset = load(folder)
    (folder / "bags" / "2.png").unlink()  # after it was found
    with GalleryWriter(tmp_path / "work.sqlite") as writer:
        writer.set_metadata(METADATA)
        names = [os.path.basename(image.file.path) for image in dataset.new_images(writer)]

    assert names[0] == b"3.png"
    assert list(dataset.found.unreadable.values()) == ["No such file or directory."]


def test_a_decoder_that_dies_is_started_again(folder):
    path = os.fsencode(folder / "boots" / "1.png")
    others = psutil.Process().children()
    with ImageReader(1) as reader:
        assert reader.read(path).reason == ""
        (process,) = set(psutil.Process().children()) - set(others)
        process.kill()
        process.wait()
        assert "decoder crashed" in reader.read(path).reason
        assert reader.read(path).photo.size == (9, 6)


def test_a_folder_without_right_to_read_is_named(folder, monkeypatch):
    boots, scandir = os.fsencode(folder / "boots"), os.scandir

    def refuse(path):
        if path == boots:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_images([os.fsencode(folder)])

    assert found.unreadable == {boots: "Permission denied."}
    assert len(found.files) == 2


def test_any_name_is_found_again_by_its_path(tmp_path):
    top = os.fsencode(tmp_path / "photos")
    os.mkdir(top)
    for i, name in enumerate(NAMES):
        Path(os.fsdecode(os.path.join(top, name))).write_bytes(
            write_image(tmp_path / "one.png", i).read_bytes()
        )

    sync(tmp_path / "work.sqlite", tmp_path / "photos")

    gallery = Gallery(tmp_path / "work.sqlite")
    paths = [path for i in gallery.ids() for path in gallery.paths(i)]
    assert sorted(os.fsencode(path.name) for path in paths) == sorted(NAMES)
    assert all(path.is_file() for path in paths)
    for image in gallery.images(gallery.ids()):
        assert image.source.isprintable()  # one line, in its own direction, valid UTF-8
        image.source.encode()


def test_links_inside_are_followed_and_every_folder_is_entered_once(folder):
    write_image(folder / ".store" / "content.png", 30)
    (folder / "boots" / "linked.png").symlink_to(folder / ".store" / "content.png")
    (folder / "boots" / "loop").symlink_to(folder)
    (folder / "again").symlink_to(folder / "bags")

    found = find_images([os.fsencode(folder), os.fsencode(folder / "boots")])

    names = [os.path.relpath(file.path, os.fsencode(folder)) for file in found.files]
    assert names == [b"bags/2.png", b"bags/3.png", b"boots/1.png", b"boots/linked.png"]
    assert found.unreadable == {}


def test_exact_copies_are_one_image_of_several_paths(folder, tmp_path):
    sync(tmp_path / "work.sqlite", folder)

    gallery = Gallery(tmp_path / "work.sqlite")
    ids = ids_by_name(tmp_path / "work.sqlite")
    assert len(gallery) == 2
    assert ids["1.png"] == ids["3.png"] != ids["2.png"]
    assert gallery.labels() == ["bags", "bags"]  # of the first path of each


def test_labels(folder, tmp_path):
    boots, bag = folder / "boots" / "1.png", folder / "bags" / "2.png"

    def label_of(path, dataset):
        return dataset.label_of(os.fsencode(path))

    by_folder = load(folder)
    assert by_folder.class_names == ["bags", "boots"]
    assert (label_of(boots, by_folder), label_of(bag, by_folder)) == ("boots", "bags")
    assert load(tmp_path).class_names == ["bags", "boots"]  # below the folder that all share
    assert load(folder / "boots", folder / "bags").class_names == ["bags", "boots"]
    assert load(folder / "bags").class_names == []
    assert load(folder, has_labels=False).class_names == []

    (tmp_path / "labels.csv").write_text(f"path,label\nboots/1.png,Schuh\n{bag},Ta\u0073che\n")
    by_file = load(folder, labels_file=tmp_path / "labels.csv")
    assert (label_of(boots, by_file), label_of(bag, by_file)) == ("Schuh", "Tasche")
    assert label_of(folder / "bags" / "3.png", by_file) is None


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "No such file"),
        ("empty", "there is no image in"),
        ("unreadable", "no image in .* can be read"),
        ("labels", "not path,label"),
    ],
)
def test_one_sentence_where_there_is_nothing_to_search(folder, tmp_path, case, message):
    other = tmp_path / "other"
    options = {}
    if case != "missing":
        other.mkdir()
    if case == "unreadable":
        (other / "1.jpg").write_text("x")
    if case == "labels":
        other = folder
        options = {"labels_file": tmp_path / "labels.csv"}
        options["labels_file"].write_text("a,b,c\n")
    with pytest.raises(DatasetError, match=message):
        sync(tmp_path / "work.sqlite", other, **options)


def test_a_second_run_reads_only_what_is_new_and_keeps_ids(folder, tmp_path, capsys):
    work = tmp_path / "work.sqlite"
    sync(work, folder)
    before = ids_by_name(work)

    _, read = sync(work, folder)
    assert read == []
    assert "0 added, 0 changed, 0 removed, 0 moved, 3 unchanged" in capsys.readouterr().out

    (folder / "bags" / "2.png").rename(folder / "boots" / "renamed.png")
    write_image(folder / "bags" / "3.png", 33)
    write_image(folder / "bags" / "4.png", 44)
    _, read = sync(work, folder)
    after = ids_by_name(work)
    assert sorted(read) == [b"3.png", b"4.png"]
    assert "1 added, 1 changed, 0 removed, 1 moved, 1 unchanged" in capsys.readouterr().out
    assert after["renamed.png"] == before["2.png"]
    assert after["1.png"] == before["1.png"]
    assert {after["3.png"], after["4.png"]}.isdisjoint(before.values())

    (folder / "boots" / "renamed.png").unlink()
    sync(work, folder)
    assert "0 added, 0 changed, 1 removed" in capsys.readouterr().out
    assert before["2.png"] not in ids_by_name(work).values()


def test_a_folder_that_lost_its_images_is_not_taken_for_deleted_files(folder, tmp_path):
    """It is rather a disk that is not mounted."""
    work, other = tmp_path / "work.sqlite", tmp_path / "other"
    write_image(other / "other.png", 7)
    sync(work, folder, other)
    before = ids_by_name(work)

    (other / "other.png").rename(tmp_path / "other.png")
    with pytest.raises(DatasetError, match=r"other holds no image any more.* has 1 of"):
        sync(work, folder, other)
    assert ids_by_name(work) == before

    sync(work, folder)
    assert before.keys() - ids_by_name(work).keys() == {"other.png"}


def test_files_are_added_and_removed_by_name(folder, tmp_path, capsys):
    work = tmp_path / "work.sqlite"
    sync(work, folder)
    before = ids_by_name(work)
    elsewhere = write_image(tmp_path / "elsewhere" / "5.png", 50)
    write_image(folder / "bags" / "6.png", 60)
    write_image(folder / "bags" / "passed_over.png", 70)

    sync(work, added=(elsewhere, folder / "bags" / "6.png"))
    assert "2 added, 0 changed, 0 removed, 0 moved, 3 unchanged" in capsys.readouterr().out
    after = ids_by_name(work)
    assert after.items() >= before.items()
    assert after.keys() - before.keys() == {"5.png", "6.png"}
    labels = dict(zip(Gallery(work).ids().tolist(), Gallery(work).labels(), strict=True))
    assert (labels[after["6.png"]], labels[after["5.png"]]) == ("bags", None)

    _, read = sync(work, removed=(folder / "bags", elsewhere))
    assert read == []
    assert ids_by_name(work) == {"1.png": before["1.png"]}


def test_what_an_interrupted_update_removed_is_there_for_another_command(folder, tmp_path):
    work, published = tmp_path / "work.sqlite", tmp_path / "published.sqlite"
    sync(work, folder)
    publish_gallery(work, published, kept_versions=2)
    content = published.read_bytes()
    continue_gallery(work, published).__exit__()
    write_image(folder / "bags" / "4.png", 44)
    sync(work, removed=(folder / "bags",))  # and is killed before it is published
    sync(work, added=(folder / "bags" / "4.png",))
    assert published.read_bytes() == content

    continue_gallery(work, published).__exit__()
    assert ids_by_name(work).keys() == {"1.png", "2.png", "3.png"}
    _, read = sync(work, folder)
    assert read == []  # 4.png is known by its content
    assert ids_by_name(work).keys() == {"1.png", "2.png", "3.png", "4.png"}


def test_what_a_build_would_do_is_said_without_reading(folder, tmp_path):
    work = tmp_path / "work.sqlite"
    sync(work, folder)
    write_image(folder / "bags" / "4.png", 44)
    (folder / "bags" / "2.png").write_text("of another size")
    (folder / "boots" / "1.png").unlink()

    said = load(folder).preview(Gallery(work))

    assert said.startswith("1 new files to read, 1 changed ones, 1 to forget")
    assert load(removed=(folder,)).preview(Gallery(work)).startswith("0 new files to read, 0")


def test_a_removed_image_stays_known_until_no_served_index_has_it(folder, tmp_path):
    """And its id is never given again."""
    work = tmp_path / "work.sqlite"
    sync(work, folder)
    removed = ids_by_name(work)["2.png"]
    (folder / "bags" / "2.png").unlink()
    sync(work, folder)

    for update in range(3):
        published = tmp_path / f"{update}.sqlite"
        publish_gallery(work, published, kept_versions=2)
        gallery = Gallery(published)
        assert removed not in gallery.ids()
        assert (len(gallery), len(gallery.embeddings()[0])) == (1, 1)
        assert gallery.missing([removed]) == ([] if update < 2 else [removed])
        gallery.close()
        work.unlink()
        continue_gallery(work, published).__exit__()
    write_image(folder / "bags" / "2.png", 55)
    sync(work, folder)
    assert ids_by_name(work)["2.png"] > removed


def test_another_encoder_embeds_again_under_the_same_ids(folder, tmp_path):
    work = tmp_path / "work.sqlite"
    sync(work, folder)
    before = ids_by_name(work)
    with GalleryWriter(work) as writer:
        writer.set_metadata(GalleryMetadata("gallery1", "encoder2", "p", [], 8, 8, False, False))

    _, read = sync(work, folder)

    assert sorted(set(read)) != []
    assert ids_by_name(work) == before
