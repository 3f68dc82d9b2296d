"""What a build writes appears at once, or not at all.

A build writes into ``.build/staging``. When all is there and on disk, one rename makes it
``.build/ready``: that is the moment the build has happened. Its folders then move to their
places, and whoever comes next (the build itself, a start script, the next build) finishes moves
that were cut short. `SHA256SUMS`, in the gallery, names every file, so that a damaged one is
found before it is served (``sha256sum --check gallery/SHA256SUMS`` does the same by hand).

Only the standard library, so that the start scripts can run it without the build's packages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from reverse_image_search.layout import BUILD_COMMAND, CHECKSUMS, MODEL_REPO, PARTS

UNCHANGED = "Nothing was published; what was built before is unchanged."

# fsync(2) of a folder: VirtualBox shares, and some of CIFS, 9p, NFS and FUSE, cannot do it.
_CANNOT_SYNC_FOLDERS = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class PublishingError(Exception):
    """A build cannot start, or what it wrote is missing or damaged."""


@contextlib.contextmanager
def staging(output_dir: Path) -> Iterator[Path]:
    """An empty folder to build in; published when the block ends, deleted when it fails.

    Raises PublishingError when another build writes to `output_dir`, or the disk cannot publish.
    """
    work = output_dir / ".build"
    work.mkdir(parents=True, exist_ok=True)
    with _lock(work / "build.lock", wait=False):
        finish_publishing(output_dir)
        _check_file_system(output_dir)
        folder = _empty(work / "staging")
        try:
            yield folder
            write_checksums(folder)
            _sync(folder)
            folder.rename(work / "ready")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        try:
            finish_publishing(output_dir)
        except OSError as error:
            raise PublishingError(
                f"The build is complete, but could not be moved into place ({error}). Fix that; "
                "the next start of the server, or the next build, moves it."
            ) from error


def check_space(output_dir: Path, needed: int) -> None:
    """Raise PublishingError where `output_dir` has no room for a build of `needed` bytes."""
    free = shutil.disk_usage(output_dir).free
    if free < needed:
        raise PublishingError(
            f"The build needs {needed / 1e6:,.0f} MB in {output_dir}, where {free / 1e6:,.0f} MB "
            f"are free. {UNCHANGED}"
        )


def _check_file_system(output_dir: Path) -> None:
    """Try all that publishing does to the disk, before the long work that it comes after."""
    work = output_dir / ".build"
    for part in PARTS:
        folder = output_dir / part
        if folder.is_mount():
            raise PublishingError(
                f"{folder} is a mount point, which a build cannot replace. "
                f"Mount a folder above it, {output_dir} for example."
            )
        if folder.is_dir() and not os.access(folder, os.W_OK):
            raise PublishingError(
                f"{folder} belongs to another user (id {folder.stat().st_uid}) and cannot be "
                f"replaced. Remove it, or build into another folder with --output-dir."
            )
    trial = work / "trial"
    try:
        _empty(trial)
        (trial / "staging" / "folder").mkdir(parents=True)
        (trial / "staging" / "folder" / "file").write_bytes(b"\0" * 4096)
        _sync(trial)
        (trial / "staging").rename(trial / "ready")
        (trial / "ready" / "folder").rename(trial / "folder")
        with _lock(trial / "folder" / "file", wait=True):
            pass
    except OSError as error:
        raise PublishingError(
            f"{error.filename or work}: {error.strerror}. A build cannot be published to "
            f"{output_dir}. {UNCHANGED}"
        ) from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def finish_publishing(output_dir: Path) -> None:
    """Move a finished build into place; nothing happens when there is none."""
    ready = output_dir / ".build" / "ready"
    if not ready.exists():
        return
    with _lock(output_dir / ".build" / "publish.lock", wait=True):
        replaced = _empty(output_dir / ".build" / "replaced")
        for part in PARTS:
            if (ready / part).exists():
                if (output_dir / part).exists():
                    (output_dir / part).rename(replaced / part)
                (ready / part).rename(output_dir / part)
        # Removed last: as long as it is there, the moves are not known to be complete.
        shutil.rmtree(ready, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def verify(output_dir: Path) -> None:
    """Check every file of the published build against its checksum.

    Raises PublishingError when nothing is built, or a file is missing, damaged or foreign.
    """
    sums, model_repo = output_dir / CHECKSUMS, output_dir / MODEL_REPO
    try:
        lines = sums.read_text().splitlines()
    except FileNotFoundError:
        if model_repo.exists():
            raise _damage(f"{sums} is missing") from None
        # A build that is running is a better reason than none.
        lock = _lock(output_dir / ".build" / "build.lock", wait=False)
        with contextlib.suppress(FileNotFoundError, PermissionError), lock:
            pass
        raise _damage(f"There are no models in {model_repo}", "Build them") from None
    except UnicodeDecodeError:
        raise _damage(f"{sums} is damaged") from None
    if not lines:
        raise _damage(f"{sums} is empty")
    sum_of = {name: expected for expected, _, name in (line.partition("  ") for line in lines)}
    for path in model_repo.rglob("*"):
        # Triton would serve it.
        if path.is_file() and path.relative_to(output_dir).as_posix() not in sum_of:
            raise _damage(f"{path} is not part of this build", "Remove it, or build again")
    for name, expected in sum_of.items():
        path = output_dir / name
        if not path.is_file():
            raise _damage(f"{path} is missing")
        if _sha256(path) != expected:
            raise _damage(f"{path} is damaged: it is not the file that the build wrote")


def _damage(reason: str, remedy: str = "Build again") -> PublishingError:
    return PublishingError(f"{reason}. {remedy} with {BUILD_COMMAND}")


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in `folder`, for `verify`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / CHECKSUMS).write_text("".join(lines))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """Have the disk hold every file and folder below `folder` before it is renamed."""
    for path in (folder, *folder.rglob("*")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if not (path.is_dir() and error.errno in _CANNOT_SYNC_FOLDERS):
                raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _lock(path: Path, wait: bool) -> Iterator[None]:
    """Hold an advisory lock; the system releases it when the holder dies."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise PublishingError(
                f"Another build is writing to {path.parent.parent}. Wait until it ends, or stop it."
            ) from None
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                raise
            raise PublishingError(
                f"The file system of {path.parent.parent} cannot lock files ({error.strerror}). "
                "Build into a folder on another disk with --output-dir."
            ) from None
        yield


def main() -> str | None:
    """Finish what a build left half published, then verify it; returns what is wrong."""
    output_dir = Path(sys.argv[1])
    try:
        finish_publishing(output_dir)
        verify(output_dir)
    except PublishingError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main())
