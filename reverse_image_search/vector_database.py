"""Keep vectors that are in a database in step with the published gallery.

Rows of the gallery are published first, then its vectors are added and removed; rows of removed
images stay for some updates. So no search finds an id that the gallery does not have. The ids that
may differ are noted before, in ``.build``, and whoever comes next finishes what was interrupted.
"""

import os
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from reverse_image_search import layout
from reverse_image_search.gallery import Gallery, GalleryError
from reverse_image_search.indexes import INDEXES, VectorDatabaseError

_CHANGED = f"{layout.WORK}/changed_ids.txt"  # one a line
_MADE = f"{layout.WORK}/vector_indexes.txt"  # kind and name of each index that was made, one a line


def note_changes(output_dir: Path, gallery: Gallery) -> None:
    """Note which ids the published gallery and the next one, `gallery`, do not share."""
    with closing(Gallery(layout.gallery_file(output_dir))) as published:
        ids = np.setxor1d(published.ids(), gallery.ids())
    with (output_dir / _CHANGED).open("w") as file:
        file.writelines(f"{each}\n" for each in ids)
        file.flush()
        os.fsync(file.fileno())


def apply_changes(output_dir: Path) -> None:
    """Make the changes that are noted: their vectors become those of the published gallery.

    Raises VectorDatabaseError; then they stay noted.
    """
    note = output_dir / _CHANGED
    if not note.exists():
        return
    changed = np.array(note.read_text().split(), np.int64)
    with closing(Gallery(layout.gallery_file(output_dir))) as gallery:
        kind, name = _index_of(gallery)
        database = INDEXES[kind].database
        if database:
            ids, embeddings = gallery.embeddings(changed)
            vectors, removed = torch.from_numpy(embeddings), np.setdiff1d(changed, ids)
            start = time.perf_counter()
            try:
                database.update(name, torch.from_numpy(ids), vectors, torch.from_numpy(removed))
            except VectorDatabaseError as error:
                raise VectorDatabaseError(
                    f"{error}. The gallery is published, but its index lacks the last changes: run "
                    "this again once that is fixed"
                ) from error
            seconds = time.perf_counter() - start
            print(f"{name}: {len(changed)} vectors changed in {seconds:.1f} s", flush=True)
    note.unlink()


def is_index_lost(output_dir: Path) -> bool:
    """Whether the published index should be in a database and is not.

    Raises VectorDatabaseError where that does not answer.
    """
    with closing(Gallery(layout.gallery_file(output_dir))) as gallery:
        kind, name = _index_of(gallery)
    database = INDEXES[kind].database
    return database is not None and not database.has(name)


def note_index(output_dir: Path, kind: str, name: str) -> None:
    """Note that the index `name` is made in the database of `kind`."""
    with (output_dir / _MADE).open("a") as file:
        print(kind, name, file=file)


def switch_index(output_dir: Path) -> None:
    """Name the index of the build that was just published, and drop those that no build uses.

    That of the previous build stays, so that one can go back.
    """
    (output_dir / _CHANGED).unlink(missing_ok=True)
    with closing(Gallery(layout.gallery_file(output_dir))) as gallery:
        kind, name = _index_of(gallery)
        gallery_id = gallery.gallery_id
    if database := INDEXES[kind].database:
        database.set_alias(name, f"gallery_{gallery_id}")
    _drop_unused(output_dir, {name, _previous_name(output_dir)})


def _drop_unused(output_dir: Path, used: set[str]) -> None:
    note = output_dir / _MADE
    if not note.exists():
        return
    kept = []
    for line in dict.fromkeys(note.read_text().splitlines()):
        kind, _, name = line.partition(" ")
        database = INDEXES[kind].database if kind in INDEXES else None
        try:
            if name in used:
                kept.append(line)
            elif database:
                database.drop(name)
        except VectorDatabaseError as error:
            print(f"{name} is not needed any more, but could not be dropped: {error}")
            kept.append(line)
    note.write_text("".join(f"{line}\n" for line in kept))


def _index_of(gallery: Gallery) -> tuple[str, str]:
    """Kind and name of a gallery's index; the name is empty where it is not in a database."""
    options = gallery.metadata.build_options
    return options.get("index", next(iter(INDEXES))), options.get("index_name", "")


def _previous_name(output_dir: Path) -> str:
    try:
        with closing(Gallery(layout.gallery_file(layout.previous_build(output_dir)))) as gallery:
            return _index_of(gallery)[1]
    except GalleryError:
        return ""
