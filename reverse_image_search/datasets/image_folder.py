"""Folders of one's own images."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tqdm import tqdm

from reverse_image_search.datasets.dataset import (
    Dataset,
    DatasetError,
    DatasetOptions,
    LabeledImage,
)
from reverse_image_search.datasets.image_finder import Found, FoundFile, find_images
from reverse_image_search.datasets.labels import label_by_folder, read_labels
from reverse_image_search.first_frame import ImageFileError
from reverse_image_search.gallery import Gallery, GalleryFile, display_path
from reverse_image_search.gallery_writer import GalleryWriter
from reverse_image_search.image_reader import ImageReader, ReadFile

_LISTED = 20  # unreadable files; beyond, only how many there are for each reason


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
