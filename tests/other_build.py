"""A second build from the files of the first one, without training again."""

from __future__ import annotations

import io
import shutil
import sqlite3
from pathlib import Path

import numpy as np
from PIL import Image

from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import CHECKSUMS, gallery_file
from reverse_image_search.serving.checksums import checksums_of, write_checksums

OTHER_ID = "0123456789ab"


def make_other_build(build: Path, folder: Path) -> Path:
    """The same models with another `gallery_id`, and a gallery of every image upside down."""
    shutil.copytree(build, folder)
    old_id = Gallery(gallery_file(build)).gallery_id
    for path in folder.glob("model_repo/*/config.pbtxt"):
        path.write_text(path.read_text().replace(old_id, OTHER_ID))
    with sqlite3.connect(gallery_file(folder)) as database:
        database.create_function("upside_down", 1, _upside_down)
        for table in ("images", "queries"):
            database.execute(f"UPDATE {table} SET thumbnail = upside_down(thumbnail)")
        database.execute(
            "UPDATE metadata SET value = ? WHERE key = 'gallery_id'", [f'"{OTHER_ID}"']
        )
    (folder / CHECKSUMS).unlink()
    write_checksums(folder, checksums_of(folder))
    return folder


def _upside_down(image_file: bytes) -> bytes:
    turned = io.BytesIO()
    pixels = np.asarray(Image.open(io.BytesIO(image_file)))[::-1]
    Image.fromarray(pixels).save(turned, "PNG")
    return turned.getvalue()
