"""What every source of images gives to the pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DatasetError(Exception):
    """The dataset is damaged or cannot be had; the message says what to do."""


@dataclass(frozen=True)
class LabeledImage:
    """One image of a dataset.

    Attributes
    ----------
    pixels : (height, width) grayscale or (height, width, 3) RGB uint8
    source : path of its file, or a name that finds it in the dataset
    label : its class, where it has one
    """

    pixels: np.ndarray
    source: str
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Images to search among, and images to search with.

    Attributes
    ----------
    name : for display
    gallery : images of any sizes, read when they are asked for
    queries : images that are not part of the gallery; may be empty
    class_names : all labels; empty where the images have none
    shows_objects_on_black : whether images are objects cut out on black
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
    load : ``load(data_dir, limit)``; `limit` keeps the first images of the gallery only
    default_encoder : name of the encoder that suits these images
    """

    load: Callable[[Path, int | None], Dataset]
    default_encoder: str
