import errno
import fcntl
import os
import shutil
import stat
import subprocess

import pytest

from reverse_image_search.serving.publishing import (
    PublishingError,
    check_space,
    finish_publishing,
    staging,
    verify,
)


def write_build(folder, content: str) -> None:
    """Files as a build writes them, each with `content`."""
    for name in ("model_repo/image_encoder/1/model.pt", "gallery/gallery.sqlite"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def published(output_dir) -> dict[str, str]:
    """Content of every published file but the checksums."""
    return {
        path.relative_to(output_dir).as_posix(): path.read_text()
        for part in ("model_repo", "gallery", "ensemble_repo")
        for path in (output_dir / part).rglob("*")
        if path.is_file() and path.name != "SHA256SUMS"
    }


def build_of(content: str) -> dict[str, str]:
    return {"model_repo/image_encoder/1/model.pt": content, "gallery/gallery.sqlite": content}


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


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_publishing_that_was_killed_between_its_moves_is_finished(tmp_path, moved):
    """`ready` holds a complete build, of which the first `moved` folders are in place."""
    publish(tmp_path / "other", "new")
    publish(tmp_path, "old")
    ready, replaced = tmp_path / ".build" / "ready", tmp_path / ".build" / "replaced"
    ready.mkdir()
    replaced.mkdir()
    for position, part in enumerate(("model_repo", "gallery")):
        if position < moved:
            (tmp_path / part).rename(replaced / part)
            (tmp_path / "other" / part).rename(tmp_path / part)
        else:
            (tmp_path / "other" / part).rename(ready / part)

    finish_publishing(tmp_path)

    assert published(tmp_path) == build_of("new")
    assert not ready.exists()
    assert not replaced.exists()
    verify(tmp_path)


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
@pytest.mark.parametrize("name", build_of(""))
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
