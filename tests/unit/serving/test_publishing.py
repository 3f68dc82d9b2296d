import errno
import fcntl
import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

import pytest

from reverse_image_search import layout
from reverse_image_search.serving.publishing import (
    PublishingError,
    check_space,
    finish_publishing,
    publish_index_version,
    roll_back,
    staging,
    verify,
)

INDEX = "model_repo/vector_similarity"


def write_build(folder, content: str) -> None:
    """Files as a build writes them, each with `content`."""
    for model in ("image_encoder", "vector_similarity"):
        version = layout.version_folder(folder / "model_repo", model)
        version.mkdir(parents=True)
        (version / "model.pt").write_text(content)
        config = f"{layout.version_policy(1)}\n# {content}\n"
        layout.config_file(folder / "model_repo", model).write_text(config)
    (folder / "gallery").mkdir(exist_ok=True)
    (folder / "gallery" / "gallery.sqlite").write_text(content)


def published(output_dir) -> dict[str, str]:
    """Content of what is served: a text for each model, and the gallery's files."""
    served = {
        path.relative_to(output_dir).as_posix(): path.read_text()
        for path in (output_dir / "gallery").glob("*")
        if path.name != "SHA256SUMS"
    }
    for folder in (output_dir / "model_repo").glob("*"):
        served[folder.name] = layout.model_file(folder.parent, folder.name).read_text()
        config = layout.config_file(folder.parent, folder.name).read_text()
        assert config.endswith(f"# {served[folder.name]}\n"), "a configuration of another build"
    return served


def build_of(content: str) -> dict[str, str]:
    return dict.fromkeys(("image_encoder", "vector_similarity", "gallery/gallery.sqlite"), content)


def publish(output_dir, content: str) -> None:
    with staging(output_dir) as folder:
        write_build(folder, content)


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


def add_version(output_dir, content: str, gallery: str = "") -> int:
    """Publish a version of the index, and a gallery with it."""

    def write_files(folder) -> None:
        version = layout.version_folder(folder / "model_repo", "vector_similarity")
        version.mkdir()
        (version / "model.pt").write_text(content)
        if gallery:
            (folder / "gallery").mkdir()
            (folder / "gallery" / "gallery.sqlite").write_text(gallery)

    return publish_index_version(output_dir, write_files)


def served_index(output_dir) -> str:
    return layout.model_file(output_dir / "model_repo", "vector_similarity").read_text()


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


def test_rolling_back_an_update_and_back_again(tmp_path):
    publish(tmp_path, "old")
    add_version(tmp_path, "second")
    add_version(tmp_path, "third", gallery="rows of all three")

    for expected in ("second", "third", "second"):
        roll_back(tmp_path)
        assert served_index(tmp_path) == expected
        verify(tmp_path)

    assert layout.served_version(tmp_path / "model_repo", "vector_similarity") == 6
    assert (tmp_path / "gallery" / "gallery.sqlite").read_text() == "rows of all three"


def test_rolling_back_a_build_and_back_again(tmp_path):
    publish(tmp_path, "old")
    add_version(tmp_path, "old", gallery="more rows")
    publish(tmp_path, "new")

    roll_back(tmp_path)
    assert published(tmp_path) == build_of("old") | {"gallery/gallery.sqlite": "more rows"}
    verify(tmp_path)

    roll_back(tmp_path)
    assert published(tmp_path) == build_of("new")
    verify(tmp_path)


def test_rolling_back_needs_an_earlier_version_that_is_whole(tmp_path):
    publish(tmp_path, "old")
    with pytest.raises(PublishingError, match="There is no earlier version"):
        roll_back(tmp_path)
    publish(tmp_path, "new")
    (tmp_path / ".build" / "previous" / "gallery" / "gallery.sqlite").write_text("else")

    with pytest.raises(PublishingError, match=r"gallery.sqlite is damaged"):
        roll_back(tmp_path)

    assert published(tmp_path) == build_of("new")


def test_two_builds_do_not_write_to_one_folder(tmp_path):
    with staging(tmp_path) as folder:
        with pytest.raises(PublishingError, match="Another build is writing"):
            publish(tmp_path, "second")
        write_build(folder, "first")

    assert published(tmp_path) == build_of("first")


def test_nothing_built_names_the_build_command(tmp_path):
    with pytest.raises(PublishingError, match=r"There are no models.*bin/build_models\.sh"):
        verify(tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text("ne"), "is damaged"),
        (lambda path: path.write_text("nex"), "is damaged"),
    ],
    ids=["missing", "cut short", "one byte changed"],
)
@pytest.mark.parametrize(
    "name",
    ["model_repo/image_encoder/1/model.pt", f"{INDEX}/config.pbtxt", "gallery/gallery.sqlite"],
)
def test_a_damaged_file_is_named(tmp_path, name, damage, message):
    publish(tmp_path, "new")
    damage(tmp_path / name)

    with pytest.raises(PublishingError, match=f"{name} {message}.*bin/build_models.sh"):
        verify(tmp_path)


def test_empty_checksums_pass_for_no_build(tmp_path):
    publish(tmp_path, "new")
    (tmp_path / "gallery" / "SHA256SUMS").write_text("")

    with pytest.raises(PublishingError, match="SHA256SUMS is empty"):
        verify(tmp_path)


def test_checksums_are_those_of_sha256sum(tmp_path):
    publish(tmp_path, "new")

    check = ["sha256sum", "--check", "--strict", "gallery/SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path, capture_output=True).returncode == 0


@pytest.fixture
def failing_sync(monkeypatch):
    """``failing_sync(number, is_kind)``: fsync fails with `number` for what `is_kind` holds."""
    fsync = os.fsync

    def fail(number: int, is_kind) -> None:
        def failing(descriptor: int) -> None:
            if is_kind(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", failing)

    return fail


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path, failing_sync, number):
    failing_sync(number, stat.S_ISDIR)

    publish(tmp_path, "new")

    assert published(tmp_path) == build_of("new")
    verify(tmp_path)


@pytest.mark.parametrize(
    ("number", "is_kind"),
    [
        (errno.EIO, stat.S_ISDIR),
        (errno.ENOSPC, stat.S_ISDIR),
        (errno.EINVAL, stat.S_ISREG),
        (errno.EIO, stat.S_ISREG),
    ],
)
def test_a_disk_that_fails_is_found_before_the_build(tmp_path, failing_sync, number, is_kind):
    publish(tmp_path, "old")
    failing_sync(number, is_kind)

    with (
        pytest.raises(PublishingError, match=f"{os.strerror(number)}.*Nothing was published"),
        staging(tmp_path),
    ):
        pytest.fail("the build started")

    assert published(tmp_path) == build_of("old")


def test_a_file_system_without_renames_of_folders_is_found_before_the_build(tmp_path, monkeypatch):
    def rename(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "rename", rename)

    with pytest.raises(PublishingError, match=r"Operation not permitted"), staging(tmp_path):
        pytest.fail("the build started")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_before_the_build(tmp_path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)

    with (
        pytest.raises(PublishingError, match=r"cannot lock files.*--output-dir"),
        staging(tmp_path),
    ):
        pytest.fail("the build started")


def test_a_mount_point_in_the_place_of_a_part_is_named_before_the_build(tmp_path):
    publish(tmp_path, "old")
    command = ["mount", "-t", "tmpfs", "tmpfs", tmp_path / "gallery"]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        with pytest.raises(PublishingError, match="gallery is a mount point"), staging(tmp_path):
            pytest.fail("the build started")
    finally:
        subprocess.run(["umount", tmp_path / "gallery"], check=True)


def test_too_little_space_is_named_with_both_figures(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    check_space(tmp_path, free // 2)

    with pytest.raises(PublishingError, match=r"needs [\d,]+ MB in .*, where [\d,]+ MB are free"):
        check_space(tmp_path, 2 * free)
