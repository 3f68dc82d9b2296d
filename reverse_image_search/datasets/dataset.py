"""What a source of images provides to the pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DatasetError(Exception):
    """The dataset is damaged or unavailable; the message says what to do."""


@dataclass(frozen=True)
class LabeledImage:
    """One image of a dataset.

    Attributes
    ----------
    pixels : (height, width) grayscale or (height, width, 3) RGB uint8
    source : path of its file, or a name that identifies it in the dataset
    label : its class, if known
    """

    pixels: np.ndarray
    source: str
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The gallery to search, and example queries.

    Attributes
    ----------
    name : for display
    gallery : images of any size, read on access
    queries : images that are not part of the gallery; may be empty
    class_names : all labels; empty without labels
    shows_objects_on_black : whether images show objects on a black background
    """

    name: str
    gallery: Sequence[LabeledImage]
    queries: Sequence[LabeledImage]
    class_names: list[str]
    shows_objects_on_black: bool = False


@dataclass(frozen=True)
class DatasetSpec:
    """An entry of the registry.

    Attributes
    ----------
    load : ``load(data_dir, limit)``; `limit` keeps only the first images of the gallery
    default_encoder : name of the encoder that suits these images
    """

    load: Callable[[Path, int | None], Dataset]
    default_encoder: str
