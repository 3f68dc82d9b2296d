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
    """Options of the command line for making an encoder.

    Attributes
    ----------
    epochs : passes over the images, for encoders that are trained here
    seed : random seed
    weights_file : state dict of a pretrained encoder, instead of its download
    """

    epochs: int = 0
    seed: int = 0
    weights_file: Path | None = None


@dataclass(frozen=True)
class EncoderSpec:
    """An entry of the registry.

    Attributes
    ----------
    make : the encoder in evaluation mode, on the CPU: RGB (batch, 3, height, width) float32, 0 to
        1, of any size -> (batch, D) float32, unit length; preprocessing is part of it
    input_size : (height, width) that it resizes to, pixels
    is_grayscale : whether it converts its input to grayscale
    license : SPDX name of the license of its weights
    default_epochs : passes over the images; 0 for a pretrained encoder
    quality_gate : scores that a full build must reach to be published, by metric; see
        `evaluation.build_score`
    quality_variant : name of the encoder that ``--quality`` uses instead
    requirements : file of the packages that it needs in addition to requirements.txt
    export_tolerance : largest allowed difference between the outputs of the exported encoder and
        its module
    """

    make: Callable[[Dataset, TrainingOptions], nn.Module]
    input_size: tuple[int, int]
    is_grayscale: bool
    license: str
    default_epochs: int = 0
    quality_gate: Mapping[str, float] = field(default_factory=dict)
    quality_variant: str | None = None
    requirements: str | None = None
    export_tolerance: float = 1e-5
