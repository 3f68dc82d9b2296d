"""The gallery: what the app shows for an id, and the test images it offers as queries.

Written by the build beside the models, opened by memory map, free of torch::

    gallery/
        manifest.json       build_id, dataset, class names
        images.npy          (N, height, width) or (N, height, width, 3) uint8
        labels.npy          (N,) int64, indices into the class names
        query_images.npy    (Q, height, width) or (Q, height, width, 3) uint8
        query_labels.npy    (Q,) int64
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reverse_image_search.layout import BUILD_COMMAND


class GalleryError(Exception):
    """The gallery is missing or damaged; the message ends with the command that mends it."""


@dataclass(frozen=True)
class Gallery:
    """Thumbnails, labels and names behind the ids that `vector_similarity` returns.

    Attributes
    ----------
    build_id : the build that wrote it; the served models must carry the same
    dataset : name of the dataset, for display
    class_names : one name per label
    images : (N, height, width[, 3]) uint8, RGB or grey
    labels : (N,) int64
    query_images : (Q, height, width[, 3]) uint8, never part of `images`
    query_labels : (Q,) int64
    """

    build_id: str
    dataset: str
    class_names: list[str]
    images: np.ndarray
    labels: np.ndarray
    query_images: np.ndarray
    query_labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def label_name(self, gallery_id: int) -> str:
        """Class name of a gallery image."""
        return self.class_names[self.labels[gallery_id]]

    def source_name(self, gallery_id: int) -> str:
        """Where a gallery image comes from, e.g. ``Fashion-MNIST train #42``."""
        return f"{self.dataset} train #{gallery_id}"


_ARRAYS = ("images", "labels", "query_images", "query_labels")


def write_gallery(folder: Path, gallery: Gallery) -> None:
    """Write `gallery` into the new folder `folder`."""
    folder.mkdir(parents=True)
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", getattr(gallery, name), allow_pickle=False)
    manifest = {
        "build_id": gallery.build_id,
        "dataset": gallery.dataset,
        "class_names": gallery.class_names,
        "count": len(gallery),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def read_build_id(folder: Path) -> str:
    """`build_id` of the gallery on disk, without opening its arrays.

    Raises
    ------
    GalleryError : `folder` holds no readable manifest
    """
    return _read_manifest(folder)["build_id"]


def open_gallery(folder: Path) -> Gallery:
    """Open the gallery of the last build; the arrays stay on disk until they are looked at.

    Raises
    ------
    GalleryError : a file is missing, cut short or of another build
    """
    gallery = _open_arrays(folder)
    if read_build_id(folder) != gallery.build_id:  # a build replaced it between two files
        gallery = _open_arrays(folder)
    return gallery


def _open_arrays(folder: Path) -> Gallery:
    manifest = _read_manifest(folder)
    arrays = {}
    for name in _ARRAYS:
        path = folder / f"{name}.npy"
        try:
            arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise GalleryError(
                f"{path} cannot be read ({error}). Build it again with {BUILD_COMMAND}"
            ) from error
    gallery = Gallery(manifest["build_id"], manifest["dataset"], manifest["class_names"], **arrays)
    for images, labels in (("images", "labels"), ("query_images", "query_labels")):
        counts = len(arrays[images]), len(arrays[labels])
        if counts[0] != counts[1]:
            raise GalleryError(
                f"{folder} has {counts[0]} {images} but {counts[1]} {labels}. "
                f"Build it again with {BUILD_COMMAND}"
            )
        if not _are_images(arrays[images]) or not _are_labels(arrays[labels], gallery.class_names):
            raise GalleryError(
                f"{folder}/{images}.npy or {labels}.npy holds something else. "
                f"Build it again with {BUILD_COMMAND}"
            )
    if len(gallery) != manifest["count"]:
        raise GalleryError(
            f"{folder}/images.npy has {len(gallery)} images, its manifest says "
            f"{manifest['count']}. Build it again with {BUILD_COMMAND}"
        )
    return gallery


def _are_images(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and (array.ndim == 3 or array.shape[3:] == (3,))


def _are_labels(array: np.ndarray, class_names: list[str]) -> bool:
    if array.ndim != 1 or array.dtype.kind != "i":
        return False
    return not len(array) or (array.min() >= 0 and array.max() < len(class_names))


def _read_manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise GalleryError(
            f"There is no gallery at {folder}. Build it with {BUILD_COMMAND}"
        ) from error
    except (OSError, ValueError) as error:
        raise GalleryError(
            f"{path} cannot be read ({error}). Build it again with {BUILD_COMMAND}"
        ) from error
    missing = {"build_id", "dataset", "class_names", "count"} - set(manifest)
    if missing:
        raise GalleryError(
            f"{path} lacks {', '.join(sorted(missing))}. Build it again with {BUILD_COMMAND}"
        )
    return manifest
