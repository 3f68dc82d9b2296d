"""What a build or an update writes appears at once, or not at all; running servers take it over.

It is written into ``.build/staging``. When all is there and on disk, one rename makes it
``.build/ready``: that is the moment it has happened. Its files then move to their places, and
whoever comes next (the writer itself, a start script, the next build) finishes moves that were cut
short.

A version of a model gets a folder of its own, and a number that no earlier one had. Servers look
at ``config.pbtxt``, which names the version, so replacing that file is what switches them
(doc/live_updates.md). `SHA256SUMS`, in the gallery, names every file, so that a damaged one is
found before it is served (``sha256sum --check gallery/SHA256SUMS`` does the same by hand).

Only the standard library, so that the start scripts can run it without the build's packages.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from reverse_image_search import layout
from reverse_image_search.contract import VECTOR_SIMILARITY
from reverse_image_search.layout import (
    BUILD_COMMAND,
    CHECKSUMS,
    FIRST_VERSION,
    GALLERY,
    MODEL_REPO,
    PARTS,
)

KEEP_VERSIONS = 2  # of the index that stay on disk: the served one and the one before

UNCHANGED = "Nothing was published; what was built before is unchanged."

# fsync(2) of a folder: VirtualBox shares, and some of CIFS, 9p, NFS and FUSE, cannot do it.
_CANNOT_SYNC_FOLDERS = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.ENOSYS}
_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}
_PREVIOUS = "previous"  # in .build: the build before, laid out as the published one


class PublishingError(Exception):
    """A build cannot start, or what it wrote is missing or damaged."""


@contextlib.contextmanager
def staging(output_dir: Path, after: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """An empty folder to build in; published when the block ends, deleted when it fails.

    The models get the next version number. The build that was published before is kept in
    ``.build/previous``. `after` is called when all is published, before another build can begin.

    Raises PublishingError when another build writes to `output_dir`, or the disk cannot publish.
    """
    with _writing(output_dir, after) as folder:
        _check_file_system(output_dir)
        yield folder
        _set_versions(folder / MODEL_REPO, next_version(output_dir))
        write_checksums(folder)
        _link_served_files(output_dir, folder / _PREVIOUS)


@contextlib.contextmanager
def staging_update(output_dir: Path, after: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """An empty folder for changes to a published build; published like that of `staging`.

    What the block writes there, all of it optional, replaces what is published:

    - the files of the index's next version, in
      ``layout.version_folder(folder / MODEL_REPO, "vector_similarity")``
    - ``layout.gallery_file(folder)``: a whole gallery. It must have every id that a kept version
      of the index knows: rows of removed images may go once they are in none of the last
      `KEEP_VERSIONS`.

    Raises PublishingError like `staging`, or when nothing is published yet.
    """
    with _writing(output_dir, after) as folder:
        sums = _read_checksums(output_dir)
        model_repo, index = folder / MODEL_REPO, VECTOR_SIMILARITY.name
        (model_repo / index).mkdir(parents=True)
        config = layout.config_file(model_repo, index)
        published = layout.config_file(output_dir / MODEL_REPO, index)
        version = next_version(output_dir)
        config.write_text(_with_version(published.read_text(), version))
        yield folder
        if not layout.version_folder(model_repo, index).exists():
            shutil.rmtree(model_repo)
        (folder / GALLERY).mkdir(exist_ok=True)
        sums |= _checksums(folder)
        kept = [*layout.versions(output_dir / MODEL_REPO, index), version][-KEEP_VERSIONS:]
        dropped = set(layout.versions(output_dir / MODEL_REPO, index)) - set(kept)
        for each in dropped if model_repo.exists() else ():
            prefix = f"{MODEL_REPO}/{index}/{each}/"
            sums = {name: digest for name, digest in sums.items() if not name.startswith(prefix)}
        _write_checksums(folder, sums)


def publish_index_version(output_dir: Path, write_files: Callable[[Path], object]) -> int:
    """Publish what `write_files` writes, see `staging_update`; returns the served index version."""
    with staging_update(output_dir) as folder:
        write_files(folder)
    return layout.served_version(output_dir / MODEL_REPO, VECTOR_SIMILARITY.name)


def roll_back(output_dir: Path) -> None:
    """Serve what was served before: the index's version before, or else the build before.

    It becomes the newest version; rolling back again returns to where this started.

    Raises PublishingError when there is no earlier version, or it is damaged.
    """
    finish_publishing(output_dir)
    verify(output_dir)
    model_repo, index = output_dir / MODEL_REPO, VECTOR_SIMILARITY.name
    older = [
        version
        for version in layout.versions(model_repo, index)
        if version != layout.served_version(model_repo, index)
    ]
    previous = output_dir / ".build" / _PREVIOUS
    if older:
        with staging_update(output_dir) as folder:
            target = layout.version_folder(folder / MODEL_REPO, index)
            _link_tree(layout.version_folder(model_repo, index, older[-1]), target)
    elif previous.exists():
        verify(previous)
        with staging(output_dir) as folder:
            for part in PARTS:
                if (previous / part).exists():
                    _link_tree(previous / part, folder / part)
    else:
        raise PublishingError(f"There is no earlier version in {output_dir}")


@contextlib.contextmanager
def _writing(output_dir: Path, after: Callable[[], object]) -> Iterator[Path]:
    """The empty folder ``.build/staging``, published when the block ends."""
    work = output_dir / ".build"
    work.mkdir(parents=True, exist_ok=True)
    with _lock(work / "build.lock", wait=False):
        finish_publishing(output_dir)
        folder = _empty(work / "staging")
        try:
            yield folder
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
        after()


def next_version(output_dir: Path) -> int:
    """A number that no version of the published models has."""
    model_repo = output_dir / MODEL_REPO
    models = [folder.name for folder in model_repo.glob("*") if folder.is_dir()]
    taken = (version for model in models for version in layout.versions(model_repo, model))
    return max(taken, default=FIRST_VERSION - 1) + 1


def _set_versions(model_repo: Path, version: int) -> None:
    """Give the served version of every model the number `version`."""
    for folder in model_repo.glob("*"):
        served = layout.version_folder(model_repo, folder.name)
        config = layout.config_file(model_repo, folder.name)
        if served.name != str(version):
            served.rename(folder / str(version))
            _write_anew(config, _with_version(config.read_text(), version))


def _with_version(config: str, version: int) -> str:
    """The text of a configuration with `version` as the served one."""
    line = layout.version_policy(version)
    text, count = re.subn(r"^version_policy .*$", line, config, flags=re.MULTILINE)
    return text if count else f"{config.rstrip()}\n{line}\n"


def _link_served_files(output_dir: Path, target: Path) -> None:
    """Put the files of the published build, without versions that are not served, into `target`."""
    if not (output_dir / CHECKSUMS).exists():
        return
    model_repo = output_dir / MODEL_REPO
    sums = {
        name: digest
        for name, digest in _read_checksums(output_dir).items()
        if not _is_unserved(Path(name), model_repo)
    }
    try:
        for name in sums:
            _link(output_dir / name, target / name)
        for folder in (output_dir / layout.ENSEMBLE_REPO).glob("*/*"):
            if folder.is_dir():  # an empty version folder
                (target / folder.relative_to(output_dir)).mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # not whole any more: nothing to return to
        shutil.rmtree(target, ignore_errors=True)
    else:
        _write_checksums(target, sums)


def _is_unserved(name: Path, model_repo: Path) -> bool:
    part, model, version = (*name.parts, "", "")[:3]
    return (
        part == MODEL_REPO
        and version.isdecimal()
        and int(version) != layout.served_version(model_repo, model)
    )


def _link_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str | Path, target: str | Path) -> None:
    """Hard-link a file, which costs neither time nor space; copy it where that is not possible."""
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copy2(source, target)


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
        for each in (folder, *folder.rglob("*")):
            if each.is_dir() and not os.access(each, os.W_OK):
                raise PublishingError(
                    f"{each} belongs to another user (id {each.stat().st_uid}) and cannot be "
                    "replaced. Remove it, or build into another folder with --output-dir."
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
    """Move what is ready into place; nothing happens when there is none."""
    ready = output_dir / ".build" / "ready"
    if not ready.exists():
        return
    with _lock(output_dir / ".build" / "publish.lock", wait=True):
        if (ready / _PREVIOUS).exists():
            shutil.rmtree(ready.parent / _PREVIOUS, ignore_errors=True)
            (ready / _PREVIOUS).rename(ready.parent / _PREVIOUS)
        for repository in (MODEL_REPO, layout.ENSEMBLE_REPO):
            for version in (each for each in (ready / repository).glob("*/*") if each.is_dir()):
                target = output_dir / version.relative_to(ready)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    version.rename(target)
                    _sync_one(target.parent)
        for file in sorted(ready.rglob("*"), key=_turn):
            if file.is_file():
                target = output_dir / file.relative_to(ready)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.suffix == ".pbtxt":
                    _make_newest(file, target.parent)
                file.replace(target)
                _sync_one(target.parent)
        _prune(output_dir)
        # Removed last: as long as it is there, the moves are not known to be complete.
        shutil.rmtree(ready, ignore_errors=True)


def _turn(path: Path) -> int:
    """Order of the moves: what ids stand for, then the index, then what asks for it."""
    if path.name == Path(CHECKSUMS).name:
        return 3
    if path.suffix != ".pbtxt":
        return 0
    return 1 if path.parent.name == VECTOR_SIMILARITY.name else 2


def _make_newest(config: Path, folder: Path) -> None:
    """Have `config` be newer than all of `folder`, or Triton would not notice the change."""
    paths = (folder, *folder.rglob("*"))
    newest = max(path.stat().st_mtime_ns for path in paths if path.exists())
    modified = max(time.time_ns(), newest + 1)
    os.utime(config, ns=(modified, modified))


def _prune(output_dir: Path) -> None:
    """Delete what is not part of the published build, earlier versions for one."""
    names = _read_checksums(output_dir)
    listed = {output_dir / name for name in (CHECKSUMS, *names)}
    folders = {folder for path in listed for folder in path.parents}
    for part in PARTS:
        for path in sorted((output_dir / part).rglob("*"), reverse=True):  # what is inside first
            if path.is_dir() and not path.is_symlink():
                if path not in folders and part != layout.ENSEMBLE_REPO:
                    shutil.rmtree(path, ignore_errors=True)
            elif path not in listed:
                path.unlink(missing_ok=True)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def verify(output_dir: Path) -> None:
    """Check every file of the published build against its checksum.

    Raises PublishingError when nothing is built, or a file is missing, damaged or foreign.
    """
    if not (output_dir / MODEL_REPO).exists():
        # A build that is running is a better reason than none.
        lock = _lock(output_dir / ".build" / "build.lock", wait=False)
        with contextlib.suppress(FileNotFoundError, PermissionError), lock:
            pass
    with contextlib.ExitStack() as stack:
        # Where it can be locked: a read-only folder does not change either.
        with contextlib.suppress(OSError, PublishingError):
            lock = _lock(output_dir / ".build" / "publish.lock", wait=True)
            stack.enter_context(lock)
        _verify(output_dir)


def _verify(output_dir: Path) -> None:
    model_repo = output_dir / MODEL_REPO
    sums = _read_checksums(output_dir)
    for path in model_repo.rglob("*"):
        # Triton would serve it.
        if path.is_file() and path.relative_to(output_dir).as_posix() not in sums:
            raise _damage(f"{path} is not part of this build", "Remove it, or build again")
    for name, expected in sums.items():
        path = output_dir / name
        if not path.is_file():
            raise _damage(f"{path} is missing")
        if _sha256(path) != expected:
            raise _damage(f"{path} is damaged: it is not the file that the build wrote")


def _read_checksums(output_dir: Path) -> dict[str, str]:
    """Digests of the published files by name; raises PublishingError when there are none."""
    sums = output_dir / CHECKSUMS
    try:
        lines = sums.read_text().splitlines()
    except FileNotFoundError:
        if (output_dir / MODEL_REPO).exists():
            raise _damage(f"{sums} is missing") from None
        raise _damage(f"There are no models in {output_dir / MODEL_REPO}", "Build them") from None
    except UnicodeDecodeError:
        raise _damage(f"{sums} is damaged") from None
    if not lines:
        raise _damage(f"{sums} is empty")
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def _damage(reason: str, remedy: str = "Build again") -> PublishingError:
    return PublishingError(f"{reason}. {remedy} with {BUILD_COMMAND}")


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in `folder`, for `verify`."""
    _write_checksums(folder, _checksums(folder))


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if path != folder / CHECKSUMS]
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _write_checksums(folder: Path, sums: dict[str, str]) -> None:
    lines = (f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    _write_anew(folder / CHECKSUMS, "".join(lines))


def _write_anew(path: Path, text: str) -> None:
    """Write a file that may be a hard link, and leave what it is linked to as it is."""
    path.unlink(missing_ok=True)
    path.write_text(text)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    """Have the disk hold every file and folder below `folder` before it is renamed."""
    for path in (folder, *folder.rglob("*")):
        _sync_one(path)


def _sync_one(path: Path) -> None:
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
