"""Check whether images show the same photo.

A cropped or turned copy scores no higher than another photo of a similar thing. But one shift,
turn, and scaling puts the details of a copy where those of the original are: geometric verification
(Philbin et al. 2007, "Object retrieval with large vocabularies and fast spatial matching"), here of
SIFT features (Lowe 2004). Photos of different things on one carpet pass that, too. So the pixels
are compared as well, everywhere that the two images overlap then.

Needs OpenCV, of requirements-duplicates.txt.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from reverse_image_search.gallery import Gallery

REQUIREMENTS = "requirements-duplicates.txt"

_FEATURES = 500  # of an image, the strongest
_CONTRAST = 0.02  # half of OpenCV's default: clothes in one color have few strong features
_RATIO = 0.8  # the nearest feature must be this much nearer than the second nearest (Lowe 2004)
_TOLERANCE = 3.0  # pixels of the thumbnail
# Matched features that must agree on one transform, and their least share of all that match.
_LEAST_AGREEING = 6
_LEAST_SHARE = 0.4
_LEAST_OVERLAP = 0.5  # of the smaller image

_SMALL_SIDE = 128  # pixels, longest side of what is compared: small errors of the transform vanish
_CELL = 12  # pixels of that, side of a square
_LEAST_CELLS = 8
_FLAT = 4.0  # gray levels, standard deviation of a square in which there is nothing to compare
# Correlation that three quarters of the squares must have.
_LEAST_CORRELATION = 0.75

_IMAGES_KEPT = 1000  # in memory, some 80 kB each
_PAIRS_AT_ONCE = 256


class Details(NamedTuple):
    """What is compared of an image."""

    points: np.ndarray  # (n, 2) float32, places of its features: x, y in pixels
    descriptors: np.ndarray  # (n, 128) uint8, of these
    small: np.ndarray  # (height, width) uint8, the image at `zoom`
    zoom: float


def can_check(gallery: Gallery) -> bool:
    """Whether the gallery is of photos whose build measured the scores of perturbed copies."""
    return gallery.metadata.is_photos and gallery.metadata.score_scale is not None


def is_installed() -> bool:
    """Whether OpenCV is installed."""
    return find_spec("cv2") is not None


class SamePhotoCheck:
    """Whether images of a gallery show the same photo; looks at their thumbnails.

    Parameters
    ----------
    gallery : one that `can_check`
    progress : called with the number of pairs checked, and of all
    """

    def __init__(
        self, gallery: Gallery, progress: Callable[[int, int], None] | None = None
    ) -> None:
        import cv2  # of requirements-duplicates.txt

        cv2.setNumThreads(1)  # pairs are checked in threads
        assert gallery.metadata.score_scale is not None
        # Hardly any copy has a lower score: the build made some hundreds.
        self.least_score = gallery.metadata.score_scale["perturbed_copies"][0]
        self._gallery = gallery
        self._progress = progress
        self._details = lru_cache(_IMAGES_KEPT)(self._read)

    def __call__(self, pairs: np.ndarray, are_similar: np.ndarray) -> np.ndarray:
        """Check pairs of ids, (n, 2) int64; those next to each other best share an id.

        Where an image has too few features, as one in a single color, `are_similar` (n,) decides.

        Returns
        -------
        (n,) bool
        """
        are_same: list[bool] = []
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
            for start in range(0, len(pairs), _PAIRS_AT_ONCE):
                part = slice(start, start + _PAIRS_AT_ONCE)
                are_same += executor.map(self._is_same, pairs[part].tolist(), are_similar[part])
                if self._progress:
                    self._progress(len(are_same), len(pairs))
        return np.array(are_same, bool)

    def _is_same(self, pair: list[int], is_similar: bool) -> bool:
        first, second = map(self._details, pair)
        if min(len(first.points), len(second.points)) < _LEAST_AGREEING:
            return is_similar
        return show_same_photo(first, second)

    def _read(self, image_id: int) -> Details:
        (image,) = self._gallery.images([image_id])
        return details(np.asarray(Image.open(io.BytesIO(image.thumbnail)).convert("L")))


def details(gray: np.ndarray) -> Details:
    """What is compared of a (height, width) uint8 image."""
    import cv2

    sift = cv2.SIFT.create(nfeatures=_FEATURES, contrastThreshold=_CONTRAST)
    points, descriptors = sift.detectAndCompute(gray, None)
    if descriptors is None:
        descriptors = np.empty((0, 128))
    zoom = min(1.0, _SMALL_SIDE / max(gray.shape))
    return Details(
        np.array([point.pt for point in points], np.float32).reshape(-1, 2),
        descriptors.astype(np.uint8),
        cv2.resize(gray, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA),
        zoom,
    )


def show_same_photo(first: Details, second: Details) -> bool:
    """Whether one image is a copy of the other, or of a part of it."""
    # What is in the smaller image is in the other, but not the other way round.
    first, second = sorted([first, second], key=lambda each: len(each.points))
    transform = _transform(first, second)
    if transform is None:
        return False
    transform[:, :2] *= second.zoom / first.zoom
    transform[:, 2] *= second.zoom
    return _agree(first.small, second.small, transform)


def _transform(first: Details, second: Details) -> np.ndarray | None:
    """The shift, turn, and scaling from the first image to the second, (2, 3), if there is one."""
    import cv2

    if min(len(first.points), len(second.points)) < _LEAST_AGREEING:
        return None
    nearest = cv2.BFMatcher().knnMatch(
        first.descriptors.astype(np.float32), second.descriptors.astype(np.float32), k=2
    )
    matches: dict[int, Any] = {}  # by feature of `second`, the nearest of `first`
    for match, runner_up in nearest:
        if match.distance < _RATIO * runner_up.distance:
            best = matches.setdefault(match.trainIdx, match)
            if match.distance < best.distance:
                matches[match.trainIdx] = match
    if len(matches) < _LEAST_AGREEING:
        return None
    transform, is_agreeing = cv2.estimateAffinePartial2D(
        first.points[[match.queryIdx for match in matches.values()]],
        second.points[list(matches)],
        ransacReprojThreshold=_TOLERANCE,
    )
    least = max(_LEAST_AGREEING, _LEAST_SHARE * len(matches))
    return transform if transform is not None and is_agreeing.sum() >= least else None


def _agree(first: np.ndarray, second: np.ndarray, transform: np.ndarray) -> bool:
    """Whether the first image, transformed, correlates with the second wherever they overlap."""
    import cv2

    size = second.shape[::-1]
    moved = cv2.warpAffine(first, transform, size)
    is_covered = cv2.warpAffine(np.ones_like(first), transform, size, flags=cv2.INTER_NEAREST)
    first_area = first.size * abs(np.linalg.det(transform[:, :2]))
    if is_covered.sum() < _LEAST_OVERLAP * min(first_area, second.size):
        return False
    is_whole = _cells(is_covered).all(axis=1)
    squares, others = (_cells(image)[is_whole].astype(np.float32) for image in (moved, second))
    squares -= squares.mean(axis=1, keepdims=True)
    others -= others.mean(axis=1, keepdims=True)
    deviations = np.stack([squares.std(axis=1), others.std(axis=1)])
    has_detail = deviations.max(axis=0) > _FLAT
    if has_detail.sum() < _LEAST_CELLS:
        return False
    products = np.maximum(deviations.prod(axis=0), 1e-6)
    correlations = (squares * others).mean(axis=1) / products
    return bool(np.quantile(correlations[has_detail], 0.25) >= _LEAST_CORRELATION)


def _cells(image: np.ndarray) -> np.ndarray:
    """The squares of an image: (n, _CELL²)."""
    rows, columns = (side // _CELL for side in image.shape)
    cut = image[: rows * _CELL, : columns * _CELL]
    squares = cut.reshape(rows, _CELL, columns, _CELL).swapaxes(1, 2)
    return squares.reshape(rows * columns, _CELL**2)
