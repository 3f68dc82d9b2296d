"""What a build writes down in the gallery's metadata, and what the next one keeps of it."""

import os
import secrets
from argparse import Namespace
from contextlib import closing
from typing import NamedTuple

from reverse_image_search import layout
from reverse_image_search.build_options import training_options
from reverse_image_search.datasets import DATASETS, Dataset, DatasetError
from reverse_image_search.encoders import ENCODERS
from reverse_image_search.gallery import Gallery, GalleryError, GalleryMetadata
from reverse_image_search.gallery_writer import GalleryWriter
from reverse_image_search.indexes import INDEXES, IndexOptions
from reverse_image_search.serving.encoder_file import encoder_recipe
from reverse_image_search.serving.publishing import next_version
from reverse_image_search.vector_database import is_index_lost

# Options that an update of a gallery keeps, and their defaults.
_KEPT_OPTIONS = {
    "index": next(iter(INDEXES)),
    "top_k": 100,
    "recall": IndexOptions.recall,
    "labels": None,
    "no_labels": False,
}


class Kept(NamedTuple):
    """What a build keeps of the published one."""

    gallery: GalleryMetadata | None  # whose images keep their ids and embeddings
    with_encoder: GalleryMetadata | None  # the same, where its encoder stays, too
    is_update: bool  # whether gallery and index are all that changes


def previous_metadata(options: Namespace) -> GalleryMetadata | None:
    """Facts about the published gallery, if this build can go on with it: if it is of files."""
    if not DATASETS[options.dataset].is_of_files:
        return None
    if not all((options.output_dir / part).exists() for part in layout.PARTS):
        return None
    try:
        gallery = Gallery(layout.gallery_file(options.output_dir))
        with closing(gallery):
            return gallery.metadata if gallery.metadata.build_options.get("folders") else None
    except GalleryError:
        return None


def keep_options(options: Namespace, previous: GalleryMetadata | None) -> None:
    """Give options that were left out the values of the previous gallery, or else defaults."""
    kept = previous.build_options if previous else {}
    if previous and not options.names_encoder and kept["encoder"] in ENCODERS:
        options.encoder = kept["encoder"]
    if options.labels or options.no_labels:  # one of them is about the other, too
        options.no_labels = not options.labels
        kept = {**kept, "labels": None}
    for name, default in _KEPT_OPTIONS.items():
        if getattr(options, name) is None:
            setattr(options, name, kept.get(name, default))
    if not previous and (options.add or options.remove or options.dry_run):
        raise DatasetError(
            f"there is no gallery of your own images in {options.output_dir} yet. Build it with "
            f"{layout.BUILD_COMMAND} --images DIR"
        )


def what_is_kept(options: Namespace, previous: GalleryMetadata | None) -> Kept:
    """What stays of the previous gallery's build.

    Raises VectorDatabaseError where its index is in a database that does not answer.
    """
    if previous is None or not _is_encoder_kept(options, previous.build_options):
        return Kept(previous, None, False)
    is_update = all(
        previous.build_options[name] == getattr(options, name)
        for name in ("index", "top_k", "recall")
    )
    return Kept(previous, previous, is_update and not is_index_lost(options.output_dir))


def _is_encoder_kept(options: Namespace, previous: dict) -> bool:
    """Whether this build uses the previous one's encoder: the same, or none was asked for."""
    if previous["encoder"] != options.encoder:
        return False
    return not options.names_encoder or previous["encoder_recipe"] == _encoder_recipe(options)


def make_metadata(
    options: Namespace,
    kept: Kept,
    dataset: Dataset,
    writer: GalleryWriter,
    encoder_id: str,
    training_recipe: str | None,
) -> GalleryMetadata:
    """Facts about the gallery that is about to be written; its classes are those so far."""
    encoder, published = ENCODERS[options.encoder], kept.with_encoder
    gallery_id = writer.metadata().get("gallery_id") or secrets.token_hex(6)
    build_options = _build_options(options, published)
    build_options["training_recipe"] = training_recipe
    if not INDEXES[options.index].is_exact:
        build_options["is_exact"] = False  # for evaluations
    if INDEXES[options.index].database:
        if published and kept.is_update:
            index_name = published.build_options["index_name"]
        else:
            index_name = f"gallery_{gallery_id}_{encoder_id}_{next_version(options.output_dir)}"
        build_options["index_name"] = index_name
    return GalleryMetadata(
        gallery_id=gallery_id,
        encoder_id=encoder_id,
        dataset=kept.gallery.dataset if kept.gallery and not options.images else dataset.name,
        class_names=writer.labels(),
        encoder_height=encoder.input_size[0],
        encoder_width=encoder.input_size[1],
        encoder_is_grayscale=encoder.is_grayscale,
        shows_objects_on_black=dataset.shows_objects_on_black,
        is_photos=dataset.is_photos,
        build_options=build_options,
        score_scale=published.score_scale if published else None,
        duplicate_threshold=published.duplicate_threshold if published else None,
    )


def _build_options(options: Namespace, published: GalleryMetadata | None) -> dict[str, object]:
    """What an update goes on with, JSON."""
    folders = [os.path.realpath(folder) for folder in options.images or ()]
    if options.add or options.remove:
        assert published
        folders = published.build_options["folders"]
    recipe = published.build_options["encoder_recipe"] if published else _encoder_recipe(options)
    values = {name: getattr(options, name) for name in ("encoder", *_KEPT_OPTIONS)}
    return {**values, "encoder_recipe": recipe, "folders": folders}


def _encoder_recipe(options: Namespace) -> str:
    return encoder_recipe(options.encoder, training_options(options))
