"""The gallery: what an id stands for. One SQLite file beside the models; needs no torch.

    metadata    key, value (JSON): gallery_id, encoder_id, dataset, class_names, ...
    images      id, source, label, width, height, sha256, thumbnail
    files       path (bytes), image_id, size, modified_ns: where images of files are; exact copies
                of a file are one image; empty where images come from elsewhere
    removed     id, updates: images that are removed, but that an index that is still kept may find,
                and how many updates ago that was; `Gallery.images` alone has them
    embeddings  id, embedding of the image by the encoder `encoder_id`
    queries     example queries, not part of the gallery; columns as in images

Ids are never reused: with AUTOINCREMENT no image gets the id of a removed one. Readers open the
file read-only, so it may be on a read-only file system.
"""

import base64
import hashlib
import io
import json
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from reverse_image_search.layout import BUILD_COMMAND

_IMAGE_COLUMNS = """
    id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, label TEXT,
    width INTEGER NOT NULL, height INTEGER NOT NULL, sha256 BLOB NOT NULL, thumbnail BLOB NOT NULL
"""
_SCHEMA_VERSION = 3
SCHEMA = f"""
    PRAGMA user_version = {_SCHEMA_VERSION};
    CREATE TABLE metadata (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE images ({_IMAGE_COLUMNS});
    CREATE TABLE queries ({_IMAGE_COLUMNS});
    CREATE INDEX image_labels ON images (label);
    CREATE INDEX image_digests ON images (sha256);
    CREATE INDEX query_labels ON queries (label);
    CREATE TABLE files (
        path BLOB PRIMARY KEY, image_id INTEGER NOT NULL REFERENCES images (id),
        size INTEGER NOT NULL, modified_ns INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX image_files ON files (image_id);
    CREATE TABLE removed (id INTEGER PRIMARY KEY REFERENCES images (id), updates INTEGER NOT NULL);
    CREATE TABLE embeddings (
        id INTEGER PRIMARY KEY REFERENCES images (id), embedding BLOB NOT NULL
    );
"""


# Of the scores in `GalleryMetadata.score_scale`, percent.
SCORE_QUANTILES = (0, 5, 25, 50, 75, 95, 100)
_NOT_REMOVED = "id NOT IN (SELECT id FROM removed)"


class GalleryError(Exception):
    """The gallery is missing or damaged; the message ends with the command that rebuilds it."""


@dataclass(frozen=True)
class GalleryMetadata:
    """Facts about the whole gallery."""

    gallery_id: str  # fixed for the life of the gallery
    encoder_id: str  # digest of the exported encoder that made the embeddings
    dataset: str  # its name, for display
    class_names: list[str]  # all labels, in the dataset's order; empty without labels
    encoder_height: int  # pixels that the encoder resizes its input to
    encoder_width: int
    encoder_is_grayscale: bool  # whether it converts its input to grayscale
    shows_objects_on_black: bool  # whether images show objects on a black background
    is_photos: bool = False  # whether images are photos, not the tiny pictures of a benchmark
    # `SCORE_QUANTILES` of the cosine scores of "random_pairs", "perturbed_copies" and, with labels,
    # "same_label".
    score_scale: dict[str, list[float]] | None = None
    duplicate_threshold: float | None = None  # the least score of near-duplicates
    build_options: dict[str, Any] = field(default_factory=dict)  # an update keeps them


class GalleryImage(NamedTuple):
    """One image of the gallery, or one example query."""

    id: int
    source: str  # path of its file, or a name such as ``Fashion-MNIST train #42``; for display
    label: str | None
    width: int  # of the original, in pixels
    height: int
    sha256: bytes  # of the file, or `pixel_digest` if there is no file
    thumbnail: bytes  # a PNG, JPEG or WebP file

    @property
    def pixels(self) -> np.ndarray:
        """The thumbnail, (height, width) or (height, width, 3) uint8."""
        return np.asarray(Image.open(io.BytesIO(self.thumbnail)))


class GalleryFile(NamedTuple):
    """A file that holds an image of the gallery."""

    path: bytes  # absolute; as the file system spells it, which need not be UTF-8
    image_id: int
    size: int  # bytes
    modified_ns: int  # time of its last change, nanoseconds since 1970


class Gallery:
    """A gallery on disk, opened read-only; safe to share between threads.

    Raises
    ------
    GalleryError : in the constructor and every method, if the file cannot be read
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._folders: dict[str, int] | None = None  # the page asks for them at each click
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
        if self._query("PRAGMA user_version")[0][0] != _SCHEMA_VERSION:
            raise self._unreadable("another version of this program wrote it")
        values = self._query("SELECT key, value FROM metadata")
        try:
            self.metadata = GalleryMetadata(**{key: json.loads(value) for key, value in values})
        except (TypeError, ValueError) as error:
            raise self._unreadable(error) from error
        self.gallery_id, self.encoder_id = self.metadata.gallery_id, self.metadata.encoder_id
        self._count = self._query(f"SELECT count(*) FROM images WHERE {_NOT_REMOVED}")[0][0]
        self.query_count = self._query("SELECT count(*) FROM queries")[0][0]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __len__(self) -> int:
        return self._count

    def ids(self, label: str | None = None) -> np.ndarray:
        """All ids, or those with `label`: (N,) int64, ascending."""
        return self._ids("images", label)

    def query_ids(self, label: str | None = None) -> np.ndarray:
        """Ids of the example queries, like `ids`."""
        return self._ids("queries", label)

    def images(self, ids: Iterable[int]) -> list[GalleryImage]:
        """The images with these ids, in the same order; a KeyError if one is not there."""
        return self._rows("images", ids)

    def queries(self, ids: Iterable[int]) -> list[GalleryImage]:
        """The example queries with these ids, like `images`."""
        return self._rows("queries", ids)

    def missing(self, ids: Iterable[int]) -> list[int]:
        """Those of `ids` that the gallery does not have."""
        statement = "SELECT value FROM json_each(?) WHERE value NOT IN (SELECT id FROM images)"
        return [row[0] for row in self._query(statement, json.dumps([int(each) for each in ids]))]

    def all_files(self) -> dict[bytes, GalleryFile]:
        """All files that hold an image, by path."""
        return {row[0]: GalleryFile(*row) for row in self._query("SELECT * FROM files")}

    def paths(self, image_id: int) -> list[Path]:
        """Absolute paths of the files that hold an image; none if it does not come from files."""
        statement = "SELECT path FROM files WHERE image_id = ? ORDER BY path"
        return [Path(os.fsdecode(path)) for (path,) in self._query(statement, int(image_id))]

    def files(self, ids: Iterable[int]) -> list[GalleryFile]:
        """The files that hold the images with these ids, the oldest first."""
        statement = """
            SELECT * FROM files WHERE image_id IN (SELECT value FROM json_each(?))
            ORDER BY modified_ns, path
        """
        rows = self._query(statement, json.dumps([int(each) for each in ids]))
        return [GalleryFile(*row) for row in rows]

    def ids_of_several_files(self) -> np.ndarray:
        """Ids of images that more than one file holds: (N,) int64, ascending."""
        statement = "SELECT image_id FROM files GROUP BY image_id HAVING count(*) > 1"
        return np.sort(np.array([row[0] for row in self._query(statement)], np.int64))

    def ids_matching(self, text: str) -> np.ndarray:
        """Ids of images with `text` in a path or in the source: (N,) int64, ascending.

        Upper and lower case of ASCII letters count as the same.
        """
        rows = self._query(
            f"SELECT id FROM images WHERE {_NOT_REMOVED} AND instr(lower(source), lower(?1)) UNION "
            "SELECT image_id FROM files WHERE instr(lower(CAST(path AS TEXT)), lower(?1))",
            text,
        )
        return np.sort(np.array([row[0] for row in rows], np.int64))

    def labels(self) -> list[str | None]:
        """Labels of all images, in the order of `ids`."""
        statement = f"SELECT label FROM images WHERE {_NOT_REMOVED} ORDER BY id"
        return [row[0] for row in self._query(statement)]

    def sources(self) -> list[str]:
        """Sources of all images, in the order of `ids`."""
        statement = f"SELECT source FROM images WHERE {_NOT_REMOVED} ORDER BY id"
        return [row[0] for row in self._query(statement)]

    def label_counts(self) -> dict[str, int]:
        """Number of images by label, in alphabetical order."""
        where = f"label IS NOT NULL AND {_NOT_REMOVED}"
        return dict(self._query(f"SELECT label, count(*) FROM images WHERE {where} GROUP BY label"))

    def folders(self) -> dict[str, int]:
        """Number of files by folder, in alphabetical order; the folders' names are for display."""
        if self._folders is None:
            rows = self._query("SELECT path FROM files")
            counts = Counter(os.path.dirname(path) for (path,) in rows)
            self._folders = {display_path(folder): counts[folder] for folder in sorted(counts)}
        return self._folders

    def embeddings(self, among: Iterable[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids (N,) int64, ascending, and their embeddings (N, D) float32.

        Of all images, or of those with an id in `among`.
        """
        embedded = f"SELECT id FROM embeddings WHERE {_NOT_REMOVED}"
        if among is None:
            rows = self._query(f"{embedded} ORDER BY id")
        else:
            wanted = json.dumps([int(each) for each in among])
            condition = "id IN (SELECT value FROM json_each(?))"
            rows = self._query(f"{embedded} AND {condition} ORDER BY id", wanted)
        ids = [row[0] for row in rows]
        (size,) = self._query("SELECT max(length(embedding)) FROM embeddings")[0]
        embeddings = np.empty((len(ids), (size or 0) // 4), np.float32)
        statement = (
            "SELECT embedding FROM embeddings "
            "WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"
        )
        for start in range(0, len(ids), 10_000):  # all at once would be twice in memory
            rows = self._query(statement, json.dumps(ids[start : start + 10_000]))
            parts = [np.frombuffer(row[0], np.float32) for row in rows]
            embeddings[start : start + len(rows)] = parts
        return np.array(ids, np.int64), embeddings

    def _ids(self, table: str, label: str | None) -> np.ndarray:
        where = _NOT_REMOVED if table == "images" else "true"
        if label is None:
            rows = self._query(f"SELECT id FROM {table} WHERE {where}")
        else:
            rows = self._query(f"SELECT id FROM {table} WHERE label = ? AND {where}", label)
        # Not ORDER BY, which would read the table instead of its index.
        return np.sort(np.array([row[0] for row in rows], np.int64))

    def _rows(self, table: str, ids: Iterable[int]) -> list[GalleryImage]:
        wanted = [int(each) for each in ids]
        statement = f"SELECT * FROM {table} WHERE id IN (SELECT value FROM json_each(?))"
        found = {row[0]: GalleryImage(*row) for row in self._query(statement, json.dumps(wanted))}
        return [found[each] for each in wanted]

    def _query(self, statement: str, *values: str | int) -> list[tuple]:
        try:
            with self._lock:
                return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _unreadable(self, reason: object) -> GalleryError:
        return GalleryError(
            f"{self._path} cannot be read ({reason}). Rebuild it with {BUILD_COMMAND}"
        )


def rows_of(ids: np.ndarray, gallery_ids: np.ndarray) -> np.ndarray:
    """Rows of `ids`, of any shape, in the ascending `gallery_ids`; -1 for those not among them."""
    rows = np.minimum(np.searchsorted(gallery_ids, ids), len(gallery_ids) - 1)
    return np.where(gallery_ids[rows] == ids, rows, -1)


# Control characters, line breaks, and those that change the direction of the text around them.
_NOT_DISPLAYED = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def display_path(path: bytes) -> str:
    """A path as one line of text; what is not UTF-8 or would break the line is escaped."""
    text = path.decode(errors="backslashreplace")
    return _NOT_DISPLAYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


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
        image.save(file, "WEBP", quality=85, method=2)  # half the time of the default, 4
    return file.getvalue()


def data_uri(image_file: bytes) -> str:
    """A PNG, JPEG or WebP file as a ``data:`` URI."""
    kind = {b"\x89PNG": "png", b"RIFF": "webp"}.get(image_file[:4], "jpeg")
    return f"data:image/{kind};base64,{base64.b64encode(image_file).decode()}"
