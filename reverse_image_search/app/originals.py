"""The files that a gallery's images were read from: no other file is ever shown.

A file counts as an image's original only if its content is still what the gallery was built from,
so a path that leads elsewhere by now shows nothing.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import streamlit as st
from PIL import Image

from reverse_image_search.gallery import Gallery, GalleryImage
from reverse_image_search.image_file import MAX_SIDE, OWN_FILES, ImageFileError, read_image

DETAILED_SIDE = 2048  # pixels, longest side of what a dialog shows and a region is cut from


class NoOriginalError(Exception):
    """An image's file cannot be shown; the message says why."""


def is_missing(paths: Sequence[Path]) -> bool:
    """Whether all files of an image are gone from folders that are still there."""
    return bool(paths) and all(path.parent.is_dir() and not path.exists() for path in paths)


def query_pixels(gallery: Gallery, image: GalleryImage, longest_side: int = MAX_SIDE) -> np.ndarray:
    """Pixels of an image as the build read them: (height, width[, 3]) uint8.

    Those of the thumbnail if there is no file, or no longer.
    """
    if not gallery.metadata.is_photos:
        return image.pixels
    try:
        return read_original(gallery, image, longest_side)
    except NoOriginalError:
        return image.pixels


def read_original(
    gallery: Gallery, image: GalleryImage, longest_side: int = DETAILED_SIDE
) -> np.ndarray:
    """Pixels of an image's file, upright: (height, width, 3) uint8 RGB.

    Raises
    ------
    NoOriginalError : none of its files is there, unchanged and readable
    """
    reason = "The gallery does not say which file this image comes from."
    for path in gallery.paths(image.id):
        try:
            return _decode(_content(path, image.sha256), longest_side)
        except (OSError, NoOriginalError, ImageFileError) as error:
            reason = getattr(error, "strerror", None) or str(error)
    raise NoOriginalError(reason)


def _content(path: Path, sha256: bytes) -> bytes:
    if not path.is_file():  # nor a pipe, which would be waited for
        raise NoOriginalError("The file is gone, or cannot be reached from here.")
    with path.open("rb") as file:
        content = file.read(OWN_FILES.max_bytes + 1)
    if hashlib.sha256(content).digest() != sha256:
        raise NoOriginalError("The file has changed since it was added to the gallery.")
    return content


@st.cache_data(max_entries=8, show_spinner=False)
def _decode(content: bytes, longest_side: int) -> np.ndarray:
    # It was decoded before, in a process of its own, when it was added to the gallery.
    return read_image(content, longest_side, OWN_FILES).pixels


def as_jpeg(pixels: np.ndarray) -> bytes:
    """A JPEG file of (height, width[, 3]) uint8, without metadata."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=88)
    return file.getvalue()


def shown_path(path: Path) -> str:
    """A path as text; bytes that are not UTF-8 are shown as ``\\xff``."""
    return os.fsencode(path).decode(errors="backslashreplace")
