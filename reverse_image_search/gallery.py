"""The gallery: what an id stands for. One SQLite file beside the models; needs no torch.

    metadata    key, value (JSON): gallery_id, encoder_id, dataset, class_names, ...
    images      id, source, label, width, height, sha256, thumbnail
    embeddings  id, embedding of the image by the encoder `encoder_id`
    queries     example queries, not part of the gallery; columns as in images

Ids are never reused: with AUTOINCREMENT no image gets the id of a removed one. Readers open the
file read-only, so it may be on a read-only file system.
"""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image

from reverse_image_search.layout import BUILD_COMMAND

_IMAGE_COLUMNS = """
    id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, label TEXT,
    width INTEGER NOT NULL, height INTEGER NOT NULL, sha256 BLOB NOT NULL, thumbnail BLOB NOT NULL
"""
_SCHEMA = f"""
    CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE images ({_IMAGE_COLUMNS});
    CREATE TABLE queries ({_IMAGE_COLUMNS});
    CREATE INDEX image_labels ON images (label);
    CREATE INDEX query_labels ON queries (label);
    CREATE TABLE embeddings (
        id INTEGER PRIMARY KEY REFERENCES images (id), embedding BLOB NOT NULL
    );
"""


class GalleryError(Exception):
    """The gallery is missing or damaged; the message ends with the command that rebuilds it."""


@dataclass(frozen=True)
class GalleryMetadata:
    """Facts about the whole gallery.

    Attributes
    ----------
    gallery_id : fixed for the life of the gallery; `vector_similarity` has it as a parameter
    encoder_id : digest of the exported encoder that made the embeddings
    dataset : name of the dataset, for display
    class_names : all labels, in the dataset's order; empty without labels
    encoder_height, encoder_width : pixels that the encoder resizes its input to
    encoder_is_grayscale : whether the encoder converts its input to grayscale
    shows_objects_on_black : whether images show objects on a black background
    """

    gallery_id: str
    encoder_id: str
    dataset: str
    class_names: list[str]
    encoder_height: int
    encoder_width: int
    encoder_is_grayscale: bool
    shows_objects_on_black: bool


@dataclass(frozen=True)
class GalleryImage:
    """One image of the gallery, or one example query.

    Attributes
    ----------
    source : path of the file, or a name such as ``Fashion-MNIST train #42``
    width, height : of the original, in pixels
    sha256 : of the file, or `pixel_digest` if there is no file
    thumbnail : a PNG, JPEG or WebP file
    """

    id: int
    source: str
    label: str | None
    width: int
    height: int
    sha256: bytes
    thumbnail: bytes

    @property
    def pixels(self) -> np.ndarray:
        """The thumbnail, (height, width) or (height, width, 3) uint8."""
        return np.asarray(Image.open(io.BytesIO(self.thumbnail)))


class Gallery:
    """A gallery on disk, opened read-only; safe to share between threads.

    Raises
    ------
    GalleryError : in the constructor and every method, if the file cannot be read
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        if not path.is_file():
            raise GalleryError(f"There is no gallery at {path}. Build it with {BUILD_COMMAND}")
        try:
            self._database = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._unreadable(error) from error
        # SQLite itself does not notice a last page that is cut short.
        size = "SELECT page_size * page_count FROM pragma_page_size, pragma_page_count"
        if path.stat().st_size < self._query(size)[0][0]:
            raise self._unreadable("the file is cut short")
        values = self._query("SELECT key, value FROM metadata")
        try:
            self.metadata = GalleryMetadata(**{key: json.loads(value) for key, value in values})
        except (TypeError, ValueError) as error:
            raise self._unreadable(error) from error
        self._count = self._query("SELECT count(*) FROM images")[0][0]
        self.query_count = self._query("SELECT count(*) FROM queries")[0][0]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @property
    def gallery_id(self) -> str:
        """See `GalleryMetadata`."""
        return self.metadata.gallery_id

    @property
    def encoder_id(self) -> str:
        """See `GalleryMetadata`."""
        return self.metadata.encoder_id

    def __len__(self) -> int:
        return self._count

    def ids(self, label: str | None = None) -> np.ndarray:
        """All ids, or those with `label`: (N,) int64, ascending."""
        return self._ids("images", label)

    def images(self, ids: Iterable[int]) -> list[GalleryImage]:
        """The images with these ids, in the same order.

        Raises
        ------
        KeyError : an id is not in the gallery
        """
        return self._rows("images", ids)

    def missing(self, ids: Iterable[int]) -> list[int]:
        """Those of `ids` that the gallery does not have."""
        statement = "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM images)"
        rows = self._query(statement, [json.dumps([int(each) for each in ids])])
        return [row[0] for row in rows]

    def labels(self) -> list[str | None]:
        """Labels of all images, in the order of `ids`."""
        return [row[0] for row in self._query("SELECT label FROM images ORDER BY id")]

    def embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) int64, ascending, and their embeddings (N, D) float32."""
        rows = self._query("SELECT id, embedding FROM embeddings ORDER BY id")
        ids = np.array([row[0] for row in rows], np.int64)
        return ids, np.stack([np.frombuffer(row[1], np.float32) for row in rows])

    def query_ids(self, label: str | None = None) -> np.ndarray:
        """Ids of the example queries, like `ids`."""
        return self._ids("queries", label)

    def queries(self, ids: Iterable[int]) -> list[GalleryImage]:
        """The example queries with these ids, like `images`."""
        return self._rows("queries", ids)

    def _ids(self, table: str, label: str | None) -> np.ndarray:
        condition, values = ("WHERE label = ?", [label]) if label is not None else ("", [])
        rows = self._query(f"SELECT id FROM {table} {condition}", values)  # answered by the index
        return np.sort(np.array([row[0] for row in rows], np.int64))

    def _rows(self, table: str, ids: Iterable[int]) -> list[GalleryImage]:
        wanted = [int(each) for each in ids]
        columns = ", ".join(field.name for field in fields(GalleryImage))
        statement = f"SELECT {columns} FROM {table} WHERE id IN (SELECT value FROM json_each(?))"
        found = {row[0]: GalleryImage(*row) for row in self._query(statement, [json.dumps(wanted)])}
        return [found[each] for each in wanted]

    def _query(self, statement: str, values: Sequence[object] = ()) -> list[tuple]:
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, reason: object) -> GalleryError:
        return GalleryError(
            f"{self._path} cannot be read ({reason}). Rebuild it with {BUILD_COMMAND}"
        )


class GalleryWriter:
    """Writes a new gallery: images first, then their embeddings, then the metadata.

    with GalleryWriter(path) as writer:
        writer.add_images(images)
        writer.add_embeddings(ids, embeddings)
        writer.set_metadata(metadata)
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path)
        self._database.executescript(_SCHEMA)

    def __enter__(self) -> GalleryWriter:
        return self

    def __exit__(self, error_type: type | None, *_error: object) -> None:
        if error_type is None:
            self._database.commit()
        self._database.close()

    def add_images(self, images: Iterable[GalleryImage]) -> None:
        """Add images under their own ids."""
        self._add("images", images)

    def add_queries(self, queries: Iterable[GalleryImage]) -> None:
        """Add example queries under their own ids."""
        self._add("queries", queries)

    def add_embeddings(self, ids: np.ndarray, embeddings: np.ndarray) -> None:
        """Add embeddings (n, D) float32 of the images with `ids` (n,)."""
        rows = zip(ids.tolist(), embeddings.astype(np.float32), strict=True)
        self._database.executemany(
            "INSERT INTO embeddings VALUES (?, ?)", ((each, row.tobytes()) for each, row in rows)
        )

    def set_metadata(self, metadata: GalleryMetadata) -> None:
        """Set the facts about the whole gallery."""
        self._database.executemany(
            "INSERT INTO metadata VALUES (?, ?)",
            [(key, json.dumps(value)) for key, value in asdict(metadata).items()],
        )

    def _add(self, table: str, images: Iterable[GalleryImage]) -> None:
        marks = ", ".join("?" * len(fields(GalleryImage)))
        self._database.executemany(
            f"INSERT INTO {table} VALUES ({marks})", (astuple(image) for image in images)
        )


def pixel_digest(pixels: np.ndarray) -> bytes:
    """SHA-256 of an image's pixels; equal for a grayscale image and its RGB form.

    Parameters
    ----------
    pixels : (height, width) or (height, width, 3) uint8
    """
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    return hashlib.sha256(pixels.tobytes()).digest()


def make_thumbnail(pixels: np.ndarray, longest_side: int = 256) -> bytes:
    """Encode an image for the page: lossless PNG if it is tiny, else WebP.

    Parameters
    ----------
    pixels : (height, width) or (height, width, 3) uint8
    """
    image = Image.fromarray(pixels)
    file = io.BytesIO()
    if max(image.size) <= 64:
        image.save(file, "PNG", compress_level=1)
    else:
        image.thumbnail((longest_side, longest_side))
        image.save(file, "WEBP", quality=85)
    return file.getvalue()
