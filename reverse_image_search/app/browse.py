"""Which images a visitor browses: by label, folder and text in the path, in order or at random."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from reverse_image_search.gallery import Gallery


def browsed_ids(
    gallery: Gallery, label: str | None = None, folder: str | None = None, text: str = ""
) -> np.ndarray:
    """Ids of the images that meet all conditions: (N,) int64, ascending.

    A `folder` of `Gallery.folders` includes the folders in it.
    """
    ids = gallery.ids(label)
    for part in (folder and folder.rstrip("/") + "/", text.strip()):
        if part:
            ids = np.intersect1d(ids, gallery.ids_matching(part))
    return ids


def short_names(folders: Iterable[str]) -> dict[str, str]:
    """Each folder without the folders that all of them are in."""
    folders = list(folders)
    start = os.path.dirname(os.path.commonpath(folders)) if folders else ""
    return {folder: os.path.relpath(folder, start) for folder in folders}
