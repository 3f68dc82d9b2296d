"""Folders of one's own images."""

from __future__ import annotations

import csv
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from reverse_image_search.datasets.dataset import (
    Dataset,
    DatasetError,
    DatasetOptions,
    LabeledImage,
)
from reverse_image_search.first_frame import ImageFileError, recognize
from reverse_image_search.gallery import Gallery, GalleryFile, display_path
from reverse_image_search.gallery_writer import GalleryWriter
from reverse_image_search.image_reader import ImageReader, ReadFile

# Formats by suffix that Pillow has a reader for, but that are no images to search for.
_NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "PDF", "WMF"}
_UNSUPPORTED_IMAGES = {".heic", ".heif", ".hif", ".jxl"}  # named as unreadable, not passed over
_RECOGNIZED_BY = 1024  # bytes
_LISTED = 20  # unreadable files; beyond, only how many there are for each reason


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


@dataclass(frozen=True)
class ImageFolder(Dataset):
    """Images of folders; a Dataset that knows which of them a gallery already has."""

    found: Found = field(default_factory=Found)
    before: dict[bytes, GalleryFile] = field(default_factory=dict)  # what the gallery had, by path
    label_of: Callable[[bytes], str | None] = lambda _: None
    has_labels: bool = True
    # Whether other files of the gallery stay, but for those at or below `removed`.
    keeps_others: bool = False
    removed: tuple[bytes, ...] = ()
    empty: tuple[bytes, ...] = ()  # folders that were named, but hold no image

    def new_images(self, gallery: GalleryWriter) -> Iterator[LabeledImage]:
        """Read files that are new or changed, several at a time, and forget those that are gone.

        Yields images of unknown content; further paths of a known one are noted in the gallery.
        """
        self.before.update(gallery.files())
        gallery.remove_files(self._gone(self.before))
        paths = [file.path for file in self._unread(self.before)]
        bar = tqdm(total=len(paths), unit=" images", smoothing=0.05, disable=not paths)
        with ImageReader() as reader, bar:
            for file in reader.read_all(paths, gallery.knows):
                if file.reason:
                    self.found.unreadable[file.path] = file.reason
                    gallery.remove_files([file.path])
                elif file.photo is None:
                    gallery.add_file(file)
                else:
                    yield self._image(file)
                bar.update()

    def finish(self, gallery: GalleryWriter) -> list[str]:
        """Remove images that no file is left of, name and label the others, and say what changed.

        Raises a DatasetError if no image is left.
        """
        gallery.remove_unused()
        files = gallery.files()
        label_of, relabeled = self.label_of, None
        if self.keeps_others:
            relabeled = files.keys() - self.before.keys()
            if self.has_labels and gallery.labels():
                folders = gallery.metadata()["build_options"]["folders"]
                label_of = label_by_folder(list(files), [os.fsencode(each) for each in folders])
        gallery.describe_files(display_path, label_of, relabeled)
        self._list_unreadable()
        if not files:
            unreadable = f"no image in {self.name} can be read"
            raise DatasetError(unreadable if self.found.files else "no image would be left")
        images = len({file.image_id for file in files.values()})
        print(
            f"{images:,} images, {len(files) - images:,} exact copies, "
            f"{len(self.found.unreadable):,} unreadable, {self.found.other_count:,} other files"
        )
        if self.before:
            print(_changes(self.before, files))
        return gallery.labels()

    def preview(self, gallery: Gallery) -> str:
        """What a build would do, by paths, sizes, and times alone."""
        known = gallery.all_files()
        unread = self._unread(known)
        new = sum(file.path not in known for file in unread)
        return (
            f"{new:,} new files to read, {len(unread) - new:,} changed ones, "
            f"{len(self._gone(known)):,} to forget (files that were renamed count as both)"
        )

    def _gone(self, known: dict[bytes, GalleryFile]) -> list[bytes]:
        """Paths that the gallery is to forget.

        Raises a DatasetError if they are all that it has of a folder that was named.
        """
        if self.keeps_others:
            tops = tuple(os.path.join(path, b"") for path in self.removed)
            return [path for path in known if os.path.join(path, b"").startswith(tops)]
        found = {file.path for file in self.found.files}
        unlisted = tuple(os.path.join(path, b"") for path in self.found.unreadable)
        gone = [path for path in known if path not in found and not path.startswith(unlisted)]
        for folder in self.empty:
            if count := sum(path.startswith(os.path.join(folder, b"")) for path in gone):
                raise DatasetError(
                    f"{display_path(folder)} holds no image any more, but the gallery "
                    f"has {count:,} of its files. If its disk is not missing, and they are to be "
                    "removed, name the other folders only"
                )
        return gone

    def _unread(self, known: dict[bytes, GalleryFile]) -> list[FoundFile]:
        """Files that are new to the gallery, or have another size or time."""
        return [
            file
            for file in self.found.files
            if file.path not in known or file[1:] != known[file.path][2:]
        ]

    def fingerprint(self) -> bytes:
        """Digest of the files' paths, sizes, and times."""
        return hashlib.sha256(repr(self.found.files).encode()).digest()

    def _list_unreadable(self) -> None:
        reasons = self.found.unreadable
        for path in sorted(reasons)[:_LISTED]:
            print(f"  left out: {display_path(path)}: {reasons[path]}")
        if len(reasons) > _LISTED:
            print(f"  left out: {len(reasons) - _LISTED:,} more")
            for reason, count in Counter(reasons.values()).most_common():
                print(f"    {count:,} of all: {reason}")

    def _image(self, file: ReadFile) -> LabeledImage:
        assert file.photo
        source, label = display_path(file.path), self.label_of(file.path)
        return LabeledImage(file.photo.pixels, source, label, file)


def _changes(before: dict[bytes, GalleryFile], after: dict[bytes, GalleryFile]) -> str:
    """What came of the files of a gallery, in words."""
    new, gone = after.keys() - before.keys(), before.keys() - after.keys()
    left = Counter(before[path].image_id for path in gone)
    moved = sum((Counter(after[path].image_id for path in new) & left).values())
    stayed = after.keys() & before.keys()
    changed = sum(after[path].image_id != before[path].image_id for path in stayed)
    return (
        f"{len(new) - moved:,} added, {changed:,} changed, {len(gone) - moved:,} removed, "
        f"{moved:,} moved, {len(stayed) - changed:,} unchanged"
    )


class _ReadOnAccess(Sequence):
    """Images of files; raises an ImageFileError for one that cannot be read."""

    def __init__(self, files: list[FoundFile], label_of: Callable[[bytes], str | None]) -> None:
        self._files, self._label_of = files, label_of
        self._reader: ImageReader | None = None

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i):
        self._reader = self._reader or ImageReader(1)
        file = self._reader.read(self._files[i].path)
        if file.photo is None:
            raise ImageFileError(file.reason)
        path = file.path
        return LabeledImage(file.photo.pixels, display_path(path), self._label_of(path), file)


def load_image_folder(options: DatasetOptions) -> ImageFolder:
    """Find the images of folders, and their labels.

    The label of an image is the name of the topmost folder that not all images share; of the
    folder that was named, where several were. A CSV file of paths and labels takes its place.

    Raises
    ------
    DatasetError : a folder is missing, or there is no image in any
    """
    keeps_others = bool(options.added or options.removed)
    named = options.added if keeps_others else options.folders
    folders = [os.fsencode(os.path.realpath(folder)) for folder in named]
    names = ", ".join(map(display_path, folders))
    found = find_images(folders)
    tops = {folder: os.path.join(folder, b"") for folder in folders}
    empty = [f for f in folders if not any(file.path.startswith(tops[f]) for file in found.files)]
    found.files = found.files[: options.limit]
    for path in folders:
        if path in found.unreadable:
            raise DatasetError(f"{display_path(path)}: {found.unreadable[path]}")
    if named and not found.files:
        further = len(found.unreadable) + found.other_count
        raise DatasetError(f"there is no image in {names} ({further:,} other files)")
    label_of: Callable[[bytes], str | None] = lambda _: None  # noqa: E731
    if options.labels_file:
        label_of = read_labels(options.labels_file, folders).get
        if not keeps_others and not any(label_of(file.path) for file in found.files):
            raise DatasetError(f"no path in {options.labels_file} is that of an image in {names}")
    elif options.has_labels and not keeps_others:
        label_of = label_by_folder([file.path for file in found.files], folders)
    labels_found = {label_of(file.path) for file in found.files} - {None}
    return ImageFolder(
        name=names,
        gallery=_ReadOnAccess(found.files, label_of),
        queries=[],
        class_names=sorted(filter(None, labels_found)),
        is_photos=True,
        found=found,
        label_of=label_of,
        has_labels=options.has_labels and not options.labels_file,
        keeps_others=keeps_others,
        removed=tuple(os.fsencode(os.path.realpath(path)) for path in options.removed),
        empty=tuple(empty),
    )


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


def label_by_folder(
    paths: Sequence[bytes], folders: Sequence[bytes]
) -> Callable[[bytes], str | None]:
    """Label of a path: the topmost folder that not all `paths` share, if there are several."""
    if len(folders) > 1:
        tops = sorted((os.path.join(folder, b"") for folder in folders), key=len, reverse=True)

        def label_of(path: bytes) -> str | None:
            top = next((top for top in tops if path.startswith(top)), None)
            return display_path(os.path.basename(top[:-1])) if top else None
    else:
        top = os.path.join(folders[0], b"")
        inside = [os.path.dirname(path) for path in paths if path.startswith(top)] or [top]
        shared = os.path.join(os.path.commonpath(inside), b"")

        def label_of(path: bytes) -> str | None:
            first, slash, _ = path.removeprefix(shared).partition(b"/")
            return display_path(first) if slash and path.startswith(shared) else None

    several = len({label_of(path) for path in paths} - {None}) > 1
    return label_of if several else lambda _: None


def read_labels(file: Path, folders: Sequence[bytes]) -> dict[bytes, str]:
    """Labels by absolute path from a CSV file: path and label in each line.

    Relative paths start at one of the folders, or at the file's own.

    Raises a DatasetError if the file cannot be read.
    """
    tops = [*folders, os.fsencode(os.path.realpath(file.parent))]
    labels: dict[bytes, str] = {}
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            for row in csv.reader(lines):
                if not row:
                    continue
                if len(row) != 2:
                    raise DatasetError(f"{file} has a line that is not path,label: {row}")
                path, label = os.fsencode(row[0]), display_path(os.fsencode(row[1]))
                labels |= {os.path.normpath(os.path.join(top, path)): label for top in tops}
    except (OSError, csv.Error) as error:
        raise DatasetError(f"the labels in {file} cannot be read ({error})") from error
    return labels


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
