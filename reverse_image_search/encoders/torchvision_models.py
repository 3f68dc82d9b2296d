"""Penultimate-layer features of torchvision's ImageNet classifiers, preprocessed as published.

torchvision is imported when it is needed: that takes over a second, for which an update of a
gallery should not wait.
"""

from functools import partial

from reverse_image_search.datasets import Dataset
from reverse_image_search.encoders.adapted import adapt
from reverse_image_search.encoders.pretrained import (
    PretrainedEncoder,
    ResizeAndCrop,
    read_weights,
    remove_last_linear,
    trace,
    wrong_weights,
)
from reverse_image_search.encoders.spec import EncoderError, EncoderSpec, TrainingOptions
from reverse_image_search.layout import BUILD_COMMAND

_SIDE = 224  # pixels that all of them were trained on


def torchvision_encoder(name: str, weights: str, license: str = "BSD-3-Clause") -> EncoderSpec:
    """The entry for a classifier of torchvision.models, with one of its published weights."""
    return EncoderSpec(
        make=partial(_load, name, weights),
        input_size=(_SIDE, _SIDE),
        is_grayscale=False,
        license=license,
        threads=2,
        export_tolerance=1e-4,  # scripts and traces differ in rounding
    )


def _load(
    name: str, weights_name: str, dataset: Dataset, options: TrainingOptions
) -> PretrainedEncoder:
    """Load a classifier with torchvision's weights or those of a file.

    Raises
    ------
    EncoderError : the weights cannot be downloaded or read, or do not fit
    """
    import torchvision

    published = torchvision.models.get_model_weights(name)[weights_name]
    network = torchvision.models.get_model(name)
    if options.weights_file:
        weights = read_weights(options.weights_file, f"torchvision's {name}")
        try:
            network.load_state_dict(weights)
        except (RuntimeError, TypeError) as error:
            raise wrong_weights(options.weights_file, f"torchvision's {name}") from error
    else:
        try:
            network.load_state_dict(published.get_state_dict(progress=True, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise EncoderError(
                f"the weights of {name} could not be downloaded from {published.url} ({error}). "
                f"Download that file elsewhere and name it: {BUILD_COMMAND} --encoder {name} "
                "--weights FILE"
            ) from error
    transforms = published.transforms()
    (side,) = transforms.crop_size
    preprocess = ResizeAndCrop(
        transforms.resize_size[0],
        side,
        transforms.mean,
        transforms.std,
        transforms.interpolation.value,
    )
    encoder = PretrainedEncoder(preprocess, trace(remove_last_linear(network), side)).eval()
    return adapt(encoder, dataset, (side, side), options)
