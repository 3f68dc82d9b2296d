"""What a source of images provides to the pipeline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DatasetError(Exception):
    """The dataset is damaged or unavailable; the message says what to do."""


@dataclass(frozen=True)
class LabeledImage:
    """One image of a dataset."""

    pixels: np.ndarray  # (height, width) grayscale or (height, width, 3) RGB uint8
    source: str  # path of its file, or a name that identifies it in the dataset
    label: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The gallery to search, and example queries."""

    name: str  # for display
    gallery: Sequence[LabeledImage]  # of any size; may be read on access
    queries: Sequence[LabeledImage]  # not part of the gallery; may be empty
    class_names: list[str]  # all labels; empty without labels
    shows_objects_on_black: bool = False  # whether images show objects on a black background


@dataclass(frozen=True)
class DatasetSpec:
    """An entry of the registry."""

    load: Callable[[Path, int | None], Dataset]  # load(data_dir, limit): the first `limit` images
    default_encoder: str  # name of the encoder that suits these images
