"""The encoder's file: exported, or the one of an earlier build that would be the same.

Training takes minutes, so a build that is stopped leaves its trained encoder to the next one.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch

from reverse_image_search import contract, layout
from reverse_image_search.datasets import Dataset
from reverse_image_search.encoders import ENCODERS, TrainingOptions
from reverse_image_search.encoders.embedding import to_pixels
from reverse_image_search.gallery import Gallery, GalleryError
from reverse_image_search.serving.export import check_export, load_torchscript, write_model_files

_TRAINED = f"{layout.WORK}/trained"  # of an output folder
_CHECKED_IMAGES = 64  # on which the exported file and its module must agree
_IMAGES_NDIM = 4  # with the batch dimension


def make_encoder_file(
    output_dir: Path, name: str, dataset: Dataset, options: TrainingOptions
) -> tuple[Path, str]:
    """Export an encoder, or reuse the published or an interrupted build's.

    Returns its file and a digest of everything that determines it, its training recipe.
    """
    spec, recipe = ENCODERS[name], _training_recipe(name, dataset, options)
    finished = output_dir / _TRAINED / recipe / layout.MODEL_FILENAME
    published = published_encoder_file(output_dir)
    if finished.exists():
        print("Resuming an interrupted build: its encoder is already trained.", flush=True)
    elif recipe == _published_recipe(output_dir, published):
        print("The published encoder is the one that this build would train.", flush=True)
        return published, recipe
    else:
        encoder = spec.make(dataset, options)
        part = finished.parent.with_suffix(f".{os.getpid()}")
        shutil.rmtree(finished.parent.parent, ignore_errors=True)  # of other recipes
        write_model_files({finished.name: encoder}, part, _IMAGES_NDIM)
        exported = load_torchscript(part / finished.name)
        for examples in _example_batches(dataset):
            check_export(exported, encoder, examples, spec.export_tolerance)
        part.rename(finished.parent)
    return finished, recipe


def remove_trained_encoder(output_dir: Path) -> None:
    """Remove what `make_encoder_file` left to the next build."""
    shutil.rmtree(output_dir / _TRAINED, ignore_errors=True)


def published_encoder_file(output_dir: Path) -> Path:
    """The file that is served."""
    return layout.model_file(output_dir / layout.MODEL_REPO, contract.IMAGE_ENCODER.name)


def encoder_digest(encoder_file: Path) -> str:
    """The `encoder_id` of an exported encoder."""
    return hashlib.sha256(encoder_file.read_bytes()).hexdigest()[:12]


def encoder_recipe(name: str, options: TrainingOptions) -> str:
    """Digest of the options that determine an encoder."""
    digest = hashlib.sha256(repr([name, *map(str, astuple(options))]).encode())
    if options.weights_file and options.weights_file.is_file():  # not its name alone
        digest.update(options.weights_file.read_bytes())
    return digest.hexdigest()[:16]


def _training_recipe(name: str, dataset: Dataset, options: TrainingOptions) -> str:
    """Digest of everything that determines an encoder: options, images, packages, and code."""
    values = [encoder_recipe(name, options), torch.__version__, dataset.name]
    digest = hashlib.sha256(repr(values).encode() + dataset.fingerprint())
    for room in ("encoders", "training"):
        for path in sorted((Path(__file__).parents[1] / room).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _published_recipe(output_dir: Path, encoder_file: Path) -> str | None:
    """The training recipe of the published encoder, if its file is what was built."""
    try:
        with closing(Gallery(layout.gallery_file(output_dir))) as gallery:
            metadata = gallery.metadata
        if metadata.encoder_id == encoder_digest(encoder_file):
            return metadata.build_options.get("training_recipe")
    except (GalleryError, OSError):
        pass
    return None


def _example_batches(dataset: Dataset) -> Iterator[torch.Tensor]:
    """Some images, batched by size: (n, 3, height, width)."""
    examples = [image.pixels for image in dataset.sample(_CHECKED_IMAGES)]
    for shape in sorted({image.shape for image in examples}):
        yield to_pixels(np.stack([image for image in examples if image.shape == shape]))
