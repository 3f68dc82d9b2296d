"""What the commands print: text that a terminal can show, JSON, and CSV of any file names."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from reverse_image_search.gallery import Gallery


class Match(NamedTuple):
    """An image of the gallery, and its cosine similarity to another one."""

    score: float
    id: int
    label: str | None
    source: str  # for display
    paths: list[str]  # as `os.fsdecode` gives them, the oldest file first; none if not of files
    width: int  # pixels
    height: int
    thumbnail: bytes

    def as_json(self) -> dict:
        """All but the thumbnail."""
        fields = self._asdict() | {"score": round(self.score, 4)}
        del fields["thumbnail"]
        return fields

    def names(self) -> list[str]:
        """What stands for the image in a list: its paths, or its source."""
        return self.paths or [self.source]


def matches(gallery: Gallery, ids: np.ndarray, scores: np.ndarray) -> list[Match]:
    """What the gallery has about `ids` (n,), with their `scores` (n,)."""
    paths: dict[int, list[str]] = {image_id: [] for image_id in ids.tolist()}
    for file in gallery.files(ids):
        paths[file.image_id].append(os.fsdecode(file.path))
    return [
        Match(
            float(score), image.id, image.label, image.source, paths[image.id],
            image.width, image.height, image.thumbnail,
        )
        for image, score in zip(gallery.images(ids), scores, strict=True)
    ]  # fmt: skip


def printable(name: str) -> str:
    """A path as one line of text: line breaks, control characters, and bytes that are not UTF-8
    are shown as ``\\n``, ``\\x1b``, and ``\\xff``.
    """
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def write_text(text: str) -> None:
    """Write to standard output; file names get back the bytes that `os.fsdecode` had replaced."""
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    sys.stdout.buffer.flush()


def write_json_list(items: Iterable[dict]) -> None:
    """Write a JSON list, one item a line.

    Bytes of file names that are not UTF-8 become lone surrogates such as ``\\udcff``, which
    `os.fsencode` turns back.
    """
    start = b"[\n"
    for item in items:
        text = json.dumps(item, ensure_ascii=False)
        sys.stdout.buffer.write(start + text.encode(errors="backslashreplace"))
        sys.stdout.buffer.flush()
        start = b",\n"
    sys.stdout.buffer.write(b"\n]\n" if start == b",\n" else b"[]\n")
    sys.stdout.buffer.flush()


def write_csv_row(values: Sequence[object]) -> None:
    """Write a row of a CSV table."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    write_text(line.getvalue())
