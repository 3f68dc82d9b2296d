import errno
import os
import time
from pathlib import Path

import pytest

from reverse_image_search import layout
from reverse_image_search.serving.checksums import verify
from reverse_image_search.serving.file_system import PublishingError
from reverse_image_search.serving.publishing import (
    finish_publishing,
    publish_index_version,
    staging,
)
from tests.unit.serving.text_builds import (
    INDEX,
    add_version,
    build_of,
    publish,
    published,
    served_index,
    write_build,
)


def test_a_build_appears_when_it_is_complete(tmp_path):
    with staging(tmp_path) as folder:
        write_build(folder, "new")
        assert published(tmp_path) == {}

    assert published(tmp_path) == build_of("new")
    assert sorted(path.name for path in (tmp_path / ".build").iterdir()) == [
        "build.lock",
        "publish.lock",
    ]
    verify(tmp_path)


def test_a_new_build_replaces_all_of_the_old_one(tmp_path):
    with staging(tmp_path) as folder:
        write_build(folder, "old")
        (folder / "gallery" / "only_in_old").write_text("old")

    publish(tmp_path, "new")

    assert published(tmp_path) == build_of("new")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_build_that_fails_leaves_the_old_one_whole(tmp_path, error):
    publish(tmp_path, "old")

    def build_half() -> None:
        with staging(tmp_path) as folder:
            write_build(folder, "half")
            raise error

    with pytest.raises(error):
        build_half()

    assert published(tmp_path) == build_of("old")
    assert not (tmp_path / ".build" / "staging").exists()
    verify(tmp_path)


def test_what_a_killed_build_left_is_not_part_of_the_next(tmp_path):
    left = tmp_path / ".build" / "staging" / "gallery"
    left.mkdir(parents=True)
    (left / "left").write_text("half")

    publish(tmp_path, "new")

    assert published(tmp_path) == build_of("new")


@pytest.mark.parametrize("moved", range(4))
def test_publishing_that_was_killed_between_its_moves_is_finished(tmp_path, monkeypatch, moved):
    """Two configurations, the gallery and the checksums: the first `moved` are in place."""
    publish(tmp_path, "old")
    replace, moves = Path.replace, []

    def replace_some(source, target):
        if len(moves) == moved:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        moves.append(target)
        return replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace_some)
        with pytest.raises(PublishingError, match="complete, but could not be moved"):
            publish(tmp_path, "new")

    finish_publishing(tmp_path)

    assert published(tmp_path) == build_of("new")
    assert not (tmp_path / ".build" / "ready").exists()
    verify(tmp_path)


def test_a_version_of_the_index_appears_beside_the_one_before(tmp_path):
    publish(tmp_path, "old")
    config = (tmp_path / INDEX / "config.pbtxt").read_text()

    assert add_version(tmp_path, "second", gallery="more rows") == 2

    assert (tmp_path / INDEX / "1" / "model.pt").read_text() == "old"
    assert (tmp_path / INDEX / "2" / "model.pt").read_text() == "second"
    assert (tmp_path / "gallery" / "gallery.sqlite").read_text() == "more rows"
    # Nothing else of the configuration changes.
    assert (tmp_path / INDEX / "config.pbtxt").read_text() == config.replace(
        layout.version_policy(1), layout.version_policy(2)
    )
    assert served_index(tmp_path) == "second"
    verify(tmp_path)


def test_two_versions_of_the_index_are_kept(tmp_path):
    publish(tmp_path, "old")
    numbers = [add_version(tmp_path, content) for content in ("second", "third", "fourth")]

    assert numbers == [2, 3, 4]
    assert layout.versions(tmp_path / "model_repo", "vector_similarity") == [3, 4]
    assert layout.versions(tmp_path / "model_repo", "image_encoder") == [1]
    verify(tmp_path)


def test_a_gallery_can_change_without_the_index(tmp_path):
    publish(tmp_path, "old")

    def write_files(folder) -> None:
        (folder / "gallery").mkdir()
        (folder / "gallery" / "gallery.sqlite").write_text("renamed files")

    assert publish_index_version(tmp_path, write_files) == 1
    assert (tmp_path / "gallery" / "gallery.sqlite").read_text() == "renamed files"
    verify(tmp_path)


def test_an_update_that_fails_leaves_everything_as_it_was(tmp_path):
    publish(tmp_path, "old")

    def write_files(folder) -> None:
        (folder / "gallery").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space"):
        publish_index_version(tmp_path, write_files)

    assert published(tmp_path) == build_of("old")
    assert layout.versions(tmp_path / "model_repo", "vector_similarity") == [1]
    verify(tmp_path)


def test_an_update_needs_a_build_that_is_not_being_written(tmp_path):
    with pytest.raises(PublishingError, match="There are no models"):
        add_version(tmp_path, "first")
    publish(tmp_path, "old")
    with staging(tmp_path) as folder:
        holder = f"Another build is writing to {tmp_path} .process {os.getpid()}."
        with pytest.raises(PublishingError, match=holder):
            add_version(tmp_path, "second")
        write_build(folder, "new")


def test_the_configuration_is_newer_than_all_beside_it(tmp_path):
    """Triton compares times: a clock that was set back must not hide a new version."""
    publish(tmp_path, "old")
    future = time.time() + 3600
    os.utime(tmp_path / INDEX / "1" / "model.pt", (future, future))

    add_version(tmp_path, "second")

    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / INDEX).rglob("*")}
    assert max(times, key=times.__getitem__) == "config.pbtxt"


def test_a_new_build_gets_a_new_version_number_and_leaves_no_other(tmp_path):
    publish(tmp_path, "old")
    add_version(tmp_path, "second")

    publish(tmp_path, "new")

    for model in ("image_encoder", "vector_similarity"):
        assert layout.versions(tmp_path / "model_repo", model) == [3]
        assert layout.served_version(tmp_path / "model_repo", model) == 3


def test_two_builds_do_not_write_to_one_folder(tmp_path):
    with staging(tmp_path) as folder:
        with pytest.raises(PublishingError, match="Another build is writing"):
            publish(tmp_path, "second")
        write_build(folder, "first")

    assert published(tmp_path) == build_of("first")
