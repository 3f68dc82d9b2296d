"""Image encoders of timm, whose weights come from the Hugging Face hub or from a file."""

from functools import partial

from reverse_image_search.datasets import Dataset
from reverse_image_search.encoders.adapted import adapt
from reverse_image_search.encoders.pretrained import (
    PretrainedEncoder,
    ResizeAndCrop,
    trace,
)
from reverse_image_search.encoders.spec import EncoderError, EncoderSpec, TrainingOptions
from reverse_image_search.layout import BUILD_COMMAND
from reverse_image_search.packages import install_requirements

SIDE = 224  # pixels; DINOv2's own default of 518 takes eight times as long
REQUIREMENTS = "requirements-timm.txt"


def timm_encoder(name: str, model: str, license: str = "Apache-2.0") -> EncoderSpec:
    """The entry `name` for a vision transformer of timm, preprocessed as timm publishes it."""
    return EncoderSpec(
        make=partial(_load, name, model),
        input_size=(SIDE, SIDE),
        is_grayscale=False,
        license=license,
        threads=2,
        export_tolerance=5e-4,  # its attention is computed in another order than in eager mode
    )


def _load(name: str, model: str, dataset: Dataset, options: TrainingOptions) -> PretrainedEncoder:
    """Load a model without its classifier.

    Raises
    ------
    EncoderError : the weights cannot be had, or they do not fit
    PackageError : timm cannot be installed
    """
    install_requirements(REQUIREMENTS)
    import timm
    from timm.data import resolve_model_data_config

    path = options.weights_file
    if path and not path.exists():
        raise EncoderError(f"there is no file {path}")
    overlay = {"file": str(path)} if path else None
    try:
        network = timm.create_model(
            model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=SIDE
        )
    except Exception as error:  # of timm, of the hub, of safetensors, of torch
        raise EncoderError(
            f"the weights of {name}, timm's {model}, could not be loaded"
            + (f" from {path}" if path else "")
            + f" ({type(error).__name__}: {error}). Download them elsewhere, as .safetensors or "
            f".pth, and name the file: {BUILD_COMMAND} --encoder {name} --weights FILE"
        ) from error
    published = resolve_model_data_config(network, {"img_size": SIDE})
    preprocess = ResizeAndCrop(
        int(SIDE / published["crop_pct"]),
        SIDE,
        published["mean"],
        published["std"],
        published["interpolation"],
    )
    encoder = PretrainedEncoder(preprocess, trace(network, SIDE)).eval()
    return adapt(encoder, dataset, (SIDE, SIDE), options)
