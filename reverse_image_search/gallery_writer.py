"""Write a gallery image by image, so that a build that was stopped can go on.

    with GalleryWriter(path) as writer:
        writer.add(image, embedding, file)  # committed every few seconds
        writer.set_metadata(metadata)

An image of a file is known again by the SHA-256 of its content: it keeps its id and its embedding
when the file is renamed, and an exact copy is a further path of the same image.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from reverse_image_search.gallery import SCHEMA, Gallery, GalleryFile, GalleryImage, GalleryMetadata
from reverse_image_search.image_reader import ReadFile

_COMMIT_SECONDS = 2.0
_UNUSED_PAGES = 0.25  # share of a gallery that removed images may leave


class GalleryWriter:
    """A gallery that is being written; continues the one at `path` if there is one."""

    def __init__(self, path: Path, is_resumed: bool = False) -> None:
        self.path = path
        self._is_resumed = is_resumed
        is_new = not path.exists()
        self._database = sqlite3.connect(path)
        if is_new:
            self._database.executescript(SCHEMA)
        self._changes = self._database.total_changes
        self._committed = time.monotonic()
        embedded = "SELECT sha256, id FROM images WHERE id IN (SELECT id FROM embeddings)"
        self._digests: dict[bytes, int] = dict(self._database.execute(embedded))

    def __enter__(self) -> GalleryWriter:
        return self

    def __exit__(self, *_exception: object) -> None:
        """Commit what was added, after an exception as well."""
        self._database.commit()
        self._database.close()

    @property
    def has_changed(self) -> bool:
        """Whether anything was changed, by an interrupted build before this one, too."""
        return self._is_resumed or self._database.total_changes > self._changes

    def files(self) -> dict[bytes, GalleryFile]:
        """All files by path; the size is -1 where the image is not embedded."""
        rows = self._database.execute(
            "SELECT path, image_id, iif(embeddings.id IS NULL, -1, size), modified_ns "
            "FROM files LEFT JOIN embeddings ON embeddings.id = image_id"
        )
        return {row[0]: GalleryFile(*row) for row in rows}

    def knows(self, sha256: bytes) -> bool:
        """Whether an image with this digest is embedded."""
        return sha256 in self._digests

    def add(self, image: GalleryImage, embedding: np.ndarray, file: ReadFile | None = None) -> None:
        """Add an image, under a new id; with a `file`, only if its content is new.

        Parameters
        ----------
        image : its id is ignored
        embedding : (D,) float32
        file : the file that holds the image
        """
        execute = self._database.execute
        image_id = None
        if file:
            known = execute("SELECT id FROM images WHERE sha256 = ?", (image.sha256,)).fetchone()
            image_id = known and known[0]
        if image_id is None:
            (image_id,) = execute(
                "INSERT INTO images VALUES "
                "((SELECT coalesce(max(seq), -1) + 1 FROM sqlite_sequence WHERE name = 'images'), "
                "?, ?, ?, ?, ?, ?) RETURNING id",
                image[1:],
            ).fetchone()
        blob = embedding.astype(np.float32).tobytes()
        execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?)", (image_id, blob))
        if file:
            self._digests[image.sha256] = image_id
            self.add_file(file)
        if time.monotonic() > self._committed + _COMMIT_SECONDS:
            self.commit()

    def add_file(self, file: ReadFile) -> None:
        """Note that a file holds an image that is embedded."""
        image_id = self._digests[file.sha256]
        row = GalleryFile(file.path, image_id, file.size, file.modified_ns)
        self._database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", row)
        self._database.execute("DELETE FROM removed WHERE id = ?", (image_id,))

    def remove_files(self, paths: Iterable[bytes]) -> None:
        """Forget files; `remove_unused` then removes the images that no file is left of."""
        self._database.executemany("DELETE FROM files WHERE path = ?", ((each,) for each in paths))

    def take_files_of(self, other: Path) -> None:
        """Replace the files by those of another state of the same gallery."""
        self._database.execute("ATTACH ? AS other", (str(other),))
        for table in ("files", "removed"):
            self._database.execute(f"DELETE FROM {table}")
            self._database.execute(f"INSERT INTO {table} SELECT * FROM other.{table}")
        self._database.commit()
        self._database.execute("DETACH other")

    def remove_unused(self) -> None:
        """Mark images without a file as removed."""
        self._database.execute(
            "INSERT OR IGNORE INTO removed SELECT id, 0 FROM images "
            "WHERE id NOT IN (SELECT image_id FROM files)"
        )

    def describe_files(
        self,
        source_of: Callable[[bytes], str],
        label_of: Callable[[bytes], str | None],
        relabeled: Container[bytes] | None = None,
    ) -> None:
        """Set source and label of each image to those of the first of its paths.

        With `relabeled`, images of which that path is not among these keep their label.
        """
        rows = self._database.execute(
            "SELECT min(path), label, image_id FROM files JOIN images ON id = image_id "
            "GROUP BY image_id"
        )
        self._database.executemany(
            "UPDATE images SET source = ?1, label = ?2 "
            "WHERE id = ?3 AND (source IS NOT ?1 OR label IS NOT ?2)",
            [
                (
                    source_of(path),
                    label_of(path) if relabeled is None or path in relabeled else label,
                    image_id,
                )
                for path, label, image_id in rows
            ],
        )

    def labels(self) -> list[str]:
        """The labels of all images that are not removed, in alphabetical order."""
        rows = self._database.execute(
            "SELECT DISTINCT label FROM images "
            "WHERE label IS NOT NULL AND id NOT IN (SELECT id FROM removed) ORDER BY label"
        )
        return [row[0] for row in rows]

    def set_queries(self, queries: Iterable[GalleryImage]) -> None:
        """Replace the example queries, each under its own id."""
        self._database.execute("DELETE FROM queries")
        self._database.executemany("INSERT INTO queries VALUES (?, ?, ?, ?, ?, ?, ?)", queries)

    def metadata(self) -> dict:
        """The metadata so far, by name."""
        rows = self._database.execute("SELECT key, value FROM metadata")
        return {key: json.loads(value) for key, value in rows}

    def set_metadata(self, metadata: GalleryMetadata) -> None:
        """Replace the metadata; embeddings of another encoder are removed."""
        before, now = self.metadata(), asdict(metadata)
        if before.get("encoder_id") != metadata.encoder_id:
            self._database.execute("DELETE FROM embeddings")
            self._digests.clear()
        self._database.executemany(
            "INSERT OR REPLACE INTO metadata VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in now.items() if before.get(key) != value],
        )
        self.commit()

    def commit(self) -> None:
        """Have what was added survive whatever comes."""
        self._database.commit()
        self._committed = time.monotonic()


def continue_gallery(path: Path, published: Path | None) -> GalleryWriter:
    """Open the gallery that an interrupted build left at `path`, or else a copy of `published`.

    Of what was left beside a published gallery, embedded images stay, known by their content; its
    files do not, for another command may follow than the one that was interrupted. All is discarded
    if it belongs to another gallery or was published.
    """
    gallery_id = Gallery(published).gallery_id if published else None
    if path.exists() and path.stat().st_nlink == 1:  # else `publish_gallery` has linked it
        with suppress(sqlite3.DatabaseError):
            writer = GalleryWriter(path, is_resumed=True)
            if published is None:
                return writer
            if gallery_id == writer.metadata().get("gallery_id"):
                writer.take_files_of(published)
                return writer
            writer.__exit__()
    remove_gallery(path)
    if published:
        part = path.with_suffix(".part")
        shutil.copyfile(published, part)
        part.rename(path)
    return GalleryWriter(path)


def publish_gallery(source: Path, target: Path, kept_versions: int) -> None:
    """Have a gallery at `target`, too; it never gives an id again.

    It loses the images that were removed `kept_versions` updates ago or earlier, and, from time to
    time, the space that they took. Where the file system has hard links, both are then one file:
    `continue_gallery` starts from a copy.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(source)) as database:
        with database:
            database.execute("UPDATE removed SET updates = updates + 1")
            old = "SELECT id FROM removed WHERE updates > ?"
            for table in ("embeddings", "images"):
                database.execute(f"DELETE FROM {table} WHERE id IN ({old})", (kept_versions,))
            database.execute("DELETE FROM removed WHERE updates > ?", (kept_versions,))
        unused, pages = (
            database.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("freelist_count", "page_count")
        )
        if unused > _UNUSED_PAGES * pages:
            database.execute("VACUUM INTO ?", (str(target),))
            return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_gallery(
    path: Path,
    metadata: GalleryMetadata,
    images: Iterable[GalleryImage],
    queries: Iterable[GalleryImage] = (),
    embeddings: Sequence[np.ndarray] | np.ndarray = (),
    files: Iterable[GalleryFile] = (),
) -> None:
    """Write a new gallery.

    Parameters
    ----------
    images, queries : each under its own id
    embeddings : (N, D) float32, of the images by ascending id; may be left out
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:  # commits unless it fails
        insert = database.executemany
        database.executescript(SCHEMA)
        for table, rows in (("images", images), ("queries", queries)):
            insert(f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        if len(embeddings):
            ids = [row[0] for row in database.execute("SELECT id FROM images ORDER BY id")]
            blobs = (row.astype(np.float32).tobytes() for row in embeddings)
            insert("INSERT INTO embeddings VALUES (?, ?)", zip(ids, blobs, strict=True))
        insert("INSERT INTO files VALUES (?, ?, ?, ?)", files)
        facts = [(key, json.dumps(value)) for key, value in asdict(metadata).items()]
        insert("INSERT INTO metadata VALUES (?, ?)", facts)


def remove_gallery(path: Path) -> None:
    """Remove a gallery, with what an interrupted writer left beside it."""
    for file in (path, path.with_name(f"{path.name}-journal")):
        file.unlink(missing_ok=True)
