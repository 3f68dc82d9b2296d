"""Which files of folders may be images."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from PIL import Image

from reverse_image_search.first_frame import recognize

# Formats by suffix that Pillow has a reader for, but that are no images to search for.
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
_UNSUPPORTED_IMAGES = {".heic", ".heif", ".hif", ".jxl"}  # named as unreadable, not passed over
_RECOGNIZED_BY = 1024  # bytes


class FoundFile(NamedTuple):
    """A file that may hold an image."""

    path: bytes  # absolute
    size: int  # bytes
    modified_ns: int


@dataclass
class Found:
    """What there is in folders."""

    files: list[FoundFile] = field(default_factory=list)  # by path
    unreadable: dict[bytes, str] = field(default_factory=dict)  # reason by path
    other_count: int = 0  # files that are no images


def find_images(folders: Sequence[bytes]) -> Found:
    """Find files that may hold images, sorted by path.

    Hidden files and folders are left out. Links are followed where they lead to a place in one of
    the `folders`, and every folder is entered once.
    """
    found = Found()
    identities = [identify(folder) for folder in folders]
    entered: set[tuple[int, int]] = set()
    tops = tuple(os.path.join(folder, b"") for folder in folders)
    links: list[bytes] = []  # last, so that what they lead to is entered by its own name
    places = list(folders)
    while places or links:
        path = places.pop() if places else links.pop()
        try:
            facts = os.stat(path)
            if not stat.S_ISDIR(facts.st_mode):
                _consider(path, facts, found)
            elif (facts.st_dev, facts.st_ino) not in entered:
                entered.add((facts.st_dev, facts.st_ino))
                for entry in os.scandir(path):
                    if entry.name.startswith(b"."):
                        continue
                    if not entry.is_symlink():
                        places.append(entry.path)
                    elif os.path.join(os.path.realpath(entry.path), b"").startswith(tops):
                        links.append(entry.path)
                    elif _has_image_suffix(entry.path) or entry.is_dir():
                        found.unreadable[entry.path] = "It is a link to a place outside the folder."
        except OSError as error:
            found.unreadable[path] = f"{error.strerror}."
    for folder, identity in zip(folders, identities, strict=True):
        if identify(folder) != identity:  # else files that were not reached would count as gone
            found.unreadable[folder] = "It vanished while its files were listed."
    found.files = sorted(set(found.files))  # one may have been named as well as its folder
    return found


def identify(path: bytes) -> tuple[int, int] | None:
    """What is at `path`; a disk that is mounted or removed there changes that."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _consider(path: bytes, facts: os.stat_result, found: Found) -> None:
    if not _may_be_image(path, facts):
        found.other_count += 1
    elif stat.S_ISREG(facts.st_mode):
        found.files.append(FoundFile(path, facts.st_size, facts.st_mtime_ns))
    else:
        found.unreadable[path] = "It is not a regular file."


def _may_be_image(path: bytes, facts: os.stat_result) -> bool:
    """By its suffix; where that says nothing, by its content."""
    if _has_image_suffix(path):
        return True
    if not stat.S_ISREG(facts.st_mode) or not facts.st_size:
        return False
    with open(path, "rb") as file:
        return recognize(file.read(_RECOGNIZED_BY)) is not None


def _has_image_suffix(path: bytes) -> bool:
    return os.path.splitext(os.fsdecode(path))[1].lower() in _image_suffixes()


@cache
def _image_suffixes() -> set[str]:
    Image.init()
    by_pillow = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in _NO_IMAGES
    }
    return by_pillow | _UNSUPPORTED_IMAGES
