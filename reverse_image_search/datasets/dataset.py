"""What a source of images provides to the pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reverse_image_search.first_frame import ImageFileError
from reverse_image_search.gallery import Gallery, GalleryImage, make_thumbnail, pixel_digest
from reverse_image_search.gallery_writer import GalleryWriter
from reverse_image_search.image_reader import ReadFile


class DatasetError(Exception):
    """The dataset is damaged or unavailable; the message says what to do."""


@dataclass(frozen=True)
class LabeledImage:
    """One image of a dataset."""

    pixels: np.ndarray  # (height, width) grayscale or (height, width, 3) RGB uint8
    source: str  # path of its file, or a name that identifies it in the dataset
    label: str | None = None
    file: ReadFile | None = None  # where it comes from, if that is a file

    def gallery_image(self, image_id: int = 0) -> GalleryImage:
        """Its row in the gallery; `GalleryWriter.add` gives another id."""
        pixels, file = self.pixels, self.file
        if file and file.photo:
            facts = (*file.photo.size, file.sha256, file.thumbnail)
        else:
            facts = (pixels.shape[1], pixels.shape[0], pixel_digest(pixels), make_thumbnail(pixels))
        return GalleryImage(image_id, self.source, self.label, *facts)


@dataclass(frozen=True)
class Dataset:
    """The gallery to search, and example queries."""

    name: str  # for display
    gallery: Sequence[LabeledImage]  # of any size; may be read on access
    queries: Sequence[LabeledImage]  # not part of the gallery; may be empty
    class_names: list[str]  # all labels; empty without labels
    shows_objects_on_black: bool = False  # whether images show objects on a black background
    is_photos: bool = False  # whether images are photos, not the tiny pictures of a benchmark

    def sample(self, count: int, seed: int = 0) -> list[LabeledImage]:
        """Draw `count` images of the gallery that can be read, or all if there are fewer."""
        drawn: list[LabeledImage] = []
        for i in np.random.default_rng(seed).permutation(len(self.gallery)):
            if len(drawn) == count:
                break
            try:
                drawn.append(self.gallery[int(i)])
            except ImageFileError:
                continue
        return drawn

    def fingerprint(self) -> bytes:
        """Digest of all images."""
        digest = hashlib.sha256()
        for image in self.gallery:
            digest.update(image.pixels.tobytes())
        return digest.digest()

    def new_images(self, _gallery: GalleryWriter) -> Iterator[LabeledImage]:
        """Images that are not in the gallery yet."""
        return iter(self.gallery)

    def finish(self, _gallery: GalleryWriter) -> list[str]:
        """Complete the gallery when `new_images` are in it; returns the names of its classes."""
        return self.class_names

    def preview(self, _gallery: Gallery) -> str:
        """What a build would do with a gallery, in words."""
        return f"{len(self.gallery):,} images to embed"


@dataclass(frozen=True)
class DatasetOptions:
    """Options of the command line for loading a dataset."""

    data_dir: Path = Path("data")  # where the dataset is, or is downloaded to
    limit: int | None = None  # use the first `limit` images
    folders: tuple[Path, ...] = ()  # of one's own images: all that the gallery shall have
    added: tuple[Path, ...] = ()  # or files and folders to add to what it has ...
    removed: tuple[Path, ...] = ()  # ... and to remove
    labels_file: Path | None = None  # CSV file of paths and labels
    has_labels: bool = True  # whether names of folders are labels


@dataclass(frozen=True)
class DatasetSpec:
    """An entry of the registry."""

    load: Callable[[DatasetOptions], Dataset]
    default_encoder: str  # name of the encoder that suits these images
    is_of_files: bool = False  # whether ``--images`` names the folders of its files
