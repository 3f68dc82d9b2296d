"""What publishing asks of a file system: room, folders that can be renamed, locks, and flushing.

Only the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from reverse_image_search.layout import PARTS, WORK

UNCHANGED = "Nothing was published; what was built before is unchanged."

# fsync(2) of a folder: VirtualBox shares, and some of CIFS, 9p, NFS and FUSE, cannot do it.
_CANNOT_SYNC_FOLDERS = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class PublishingError(Exception):
    """A build cannot start, or what it wrote is missing or damaged."""


def check_space(output_dir: Path, needed: int) -> None:
    """Raise PublishingError where `output_dir` has no room for a build of `needed` bytes."""
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise PublishingError(
            f"The build needs {needed / 1e6:,.0f} MB in {output_dir}, where {free / 1e6:,.0f} MB "
            f"are free. {UNCHANGED}"
        )


def check_file_system(output_dir: Path) -> None:
    """Try all that publishing does to the disk, before the long work that it comes after."""
    work = output_dir / WORK
    for part in PARTS:
        folder = output_dir / part
        if folder.is_mount():
            raise PublishingError(
                f"{folder} is a mount point, which a build cannot replace. "
                f"Mount a folder above it, {output_dir} for example."
            )
        for each in (folder, *folder.rglob("*")):
            if each.is_dir() and not os.access(each, os.W_OK):
                raise PublishingError(
                    f"{each} belongs to another user (id {each.stat().st_uid}) and cannot be "
                    "replaced. Remove it, or build into another folder with --output-dir."
                )
    trial = work / "trial"
    try:
        make_empty(trial)
        (trial / "staging" / "folder").mkdir(parents=True)
        (trial / "staging" / "folder" / "file").write_bytes(b"\0" * 4096)
        sync_tree(trial)
        (trial / "staging").rename(trial / "ready")
        (trial / "ready" / "folder").rename(trial / "folder")
        with lock(trial / "folder" / "file", wait=True):
            pass
    except OSError as error:
        raise PublishingError(
            f"{error.filename or work}: {error.strerror}. A build cannot be published to "
            f"{output_dir}. {UNCHANGED}"
        ) from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


@contextlib.contextmanager
def lock(path: Path, wait: bool) -> Iterator[None]:
    """Hold an advisory lock; the system releases it when the holder dies, whom the file names."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.seek(0)
            holder = f"process {file.read().strip()}"
            raise PublishingError(
                f"Another build is writing to {path.parent.parent} ({holder}). "
                "Wait until it ends, or stop it."
            ) from None
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise
            raise PublishingError(
                f"The file system of {path.parent.parent} cannot lock files ({error.strerror}). "
                "Build into a folder on another disk with --output-dir."
            ) from None
        if not wait:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        yield


def sync_tree(folder: Path) -> None:
    """Have the disk hold every file and folder below `folder` before it is renamed."""
    for path in (folder, *folder.rglob("*")):
        sync(path)


def sync(path: Path) -> None:
    """Have the disk hold a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in _CANNOT_SYNC_FOLDERS):
            raise
    finally:
        os.close(descriptor)


def link_tree(source: Path, target: Path) -> None:
    """`link` all files of a folder."""
    shutil.copytree(source, target, copy_function=link)


def link(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, which costs neither time nor space; copy it where that is not possible."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


def write_anew(path: Path, text: str) -> None:
    """Write a file that may be a hard link, and leave what it is linked to as it is."""
    path.unlink(missing_ok=True)
    path.write_text(text)


def make_empty(folder: Path) -> Path:
    """Make an empty folder in the place of whatever is there; returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
