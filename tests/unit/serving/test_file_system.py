import errno
import fcntl
import os
import shutil
import stat
import subprocess

import pytest

from reverse_image_search.serving.checksums import verify
from reverse_image_search.serving.file_system import PublishingError, check_space
from reverse_image_search.serving.publishing import staging
from tests.unit.serving.text_builds import build_of, publish, published


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
