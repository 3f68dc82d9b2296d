"""What the registry says about an encoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from reverse_image_search.datasets import Dataset


class EncoderError(Exception):
    """The encoder cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the command line for making an encoder."""

    epochs: int = 0  # passes over the images, for encoders that are trained here
    seed: int = 0
    weights_file: Path | None = None  # of a pretrained encoder, instead of its download
    adapt: bool = True  # whether a pretrained encoder learns a head from the images


@dataclass(frozen=True)
class EncoderSpec:
    """An entry of the registry.

    `make` returns a module in evaluation mode, on the CPU: `contract.IMAGES` -> (batch, D) float32,
    unit length. Preprocessing is part of it.
    """

    make: Callable[[Dataset, TrainingOptions], nn.Module]
    input_size: tuple[int, int]  # (height, width) that it resizes to, pixels
    is_grayscale: bool  # whether it converts its input to grayscale
    license: str  # SPDX name of the license of its weights
    default_epochs: int = 0  # 0 for a pretrained encoder
    quality_gate: Mapping[str, float] = field(default_factory=dict)  # see `check_quality`
    quality_variant: str | None = None  # name of the encoder that ``--quality`` uses instead
    quick_variant: str | None = None  # and ``--quick``
    threads: int = 1  # of one call; more for one that takes much longer than the index
    export_tolerance: float = 1e-5  # allowed difference between exported encoder and module
