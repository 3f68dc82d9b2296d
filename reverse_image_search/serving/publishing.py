"""What a build or an update writes appears at once, or not at all; running servers take it over.

It is written into ``.build/staging``. When all is there and on disk, one rename makes it
``.build/ready``: that is the moment it has happened. Its files then move to their places, and
whoever comes next (the writer itself, a start script, the next build) finishes moves that were cut
short.

A version of a model gets a folder of its own, and a number that no earlier one had. Servers look
at ``config.pbtxt``, which names the version, so replacing that file is what switches them
(doc/live_updates.md).

Only the standard library, so that the start scripts can run it without the build's packages.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from reverse_image_search import layout
from reverse_image_search.contract import VECTOR_SIMILARITY
from reverse_image_search.layout import CHECKSUMS, GALLERY, MODEL_REPO, PARTS
from reverse_image_search.serving.checksums import (
    checksums_of,
    read_checksums,
    verify,
    write_checksums,
)
from reverse_image_search.serving.file_system import (
    PublishingError,
    check_file_system,
    link,
    lock,
    make_empty,
    sync,
    sync_tree,
    write_anew,
)

KEEP_VERSIONS = 2  # of the index that stay on disk: the served one and the one before


@contextlib.contextmanager
def staging(output_dir: Path, after: Callable[[], object] = lambda: None) -> Iterator[Path]:
    """An empty folder to build in; published when the block ends, deleted when it fails.

    The models get the next version number. The build that was published before is kept in
    ``.build/previous``. `after` is called when all is published, before another build can begin.

    Raises PublishingError when another build writes to `output_dir`, or the disk cannot publish.
    """
    with _writing(output_dir, after) as folder:
        check_file_system(output_dir)
        yield folder
        _set_versions(folder / MODEL_REPO, next_version(output_dir))
        write_checksums(folder, checksums_of(folder))
        _link_served_files(output_dir, folder / layout.PREVIOUS)


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
        sums = read_checksums(output_dir)
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
        sums |= checksums_of(folder)
        kept = [*layout.versions(output_dir / MODEL_REPO, index), version][-KEEP_VERSIONS:]
        dropped = set(layout.versions(output_dir / MODEL_REPO, index)) - set(kept)
        for each in dropped if model_repo.exists() else ():
            prefix = f"{MODEL_REPO}/{index}/{each}/"
            sums = {name: digest for name, digest in sums.items() if not name.startswith(prefix)}
        write_checksums(folder, sums)


def publish_index_version(output_dir: Path, write_files: Callable[[Path], object]) -> int:
    """Publish what `write_files` writes, see `staging_update`; returns the served index version."""
    with staging_update(output_dir) as folder:
        write_files(folder)
    return layout.served_version(output_dir / MODEL_REPO, VECTOR_SIMILARITY.name)


@contextlib.contextmanager
def _writing(output_dir: Path, after: Callable[[], object]) -> Iterator[Path]:
    """The empty folder ``.build/staging``, published when the block ends."""
    work = output_dir / layout.WORK
    work.mkdir(parents=True, exist_ok=True)
    with lock(work / "build.lock", wait=False):
        finish_publishing(output_dir)
        folder = make_empty(work / "staging")
        try:
            yield folder
            sync_tree(folder)
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


def finish_publishing(output_dir: Path) -> None:
    """Move what is ready into place; nothing happens when there is none."""
    ready = output_dir / layout.WORK / "ready"
    if not ready.exists():
        return
    with lock(output_dir / layout.WORK / "publish.lock", wait=True):
        if (ready / layout.PREVIOUS).exists():
            shutil.rmtree(layout.previous_build(output_dir), ignore_errors=True)
            (ready / layout.PREVIOUS).rename(layout.previous_build(output_dir))
        for repository in (MODEL_REPO, layout.ENSEMBLE_REPO):
            for version in (each for each in (ready / repository).glob("*/*") if each.is_dir()):
                target = output_dir / version.relative_to(ready)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    version.rename(target)
                    sync(target.parent)
        for file in sorted(ready.rglob("*"), key=_turn):
            if file.is_file():
                target = output_dir / file.relative_to(ready)
                target.parent.mkdir(parents=True, exist_ok=True)
                if target.suffix == ".pbtxt":
                    _make_newest(file, target.parent)
                file.replace(target)
                sync(target.parent)
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
    names = read_checksums(output_dir)
    listed = {output_dir / name for name in (CHECKSUMS, *names)}
    folders = {folder for path in listed for folder in path.parents}
    for part in PARTS:
        for path in sorted((output_dir / part).rglob("*"), reverse=True):  # what is inside first
            if path.is_dir() and not path.is_symlink():
                if path not in folders and part != layout.ENSEMBLE_REPO:
                    shutil.rmtree(path, ignore_errors=True)
            elif path not in listed:
                path.unlink(missing_ok=True)


def next_version(output_dir: Path) -> int:
    """A number that no version of the published models has."""
    model_repo = output_dir / MODEL_REPO
    models = [folder.name for folder in model_repo.glob("*") if folder.is_dir()]
    taken = (version for model in models for version in layout.versions(model_repo, model))
    return max(taken, default=layout.FIRST_VERSION - 1) + 1


def _set_versions(model_repo: Path, version: int) -> None:
    """Give the served version of every model the number `version`."""
    for folder in model_repo.glob("*"):
        served = layout.version_folder(model_repo, folder.name)
        config = layout.config_file(model_repo, folder.name)
        if served.name != str(version):
            served.rename(folder / str(version))
            write_anew(config, _with_version(config.read_text(), version))


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
        for name, digest in read_checksums(output_dir).items()
        if not _is_unserved(Path(name), model_repo)
    }
    try:
        for name in sums:
            link(output_dir / name, target / name)
        for folder in (output_dir / layout.ENSEMBLE_REPO).glob("*/*"):
            if folder.is_dir():  # an empty version folder
                (target / folder.relative_to(output_dir)).mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:  # not whole any more: nothing to return to
        shutil.rmtree(target, ignore_errors=True)
    else:
        write_checksums(target, sums)


def _is_unserved(name: Path, model_repo: Path) -> bool:
    part, model, version = (*name.parts, "", "")[:3]
    return (
        part == MODEL_REPO
        and version.isdecimal()
        and int(version) != layout.served_version(model_repo, model)
    )


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
