"""Build everything that Triton and the app need: read, encode, index, export, check, publish.

Run it through ``reverse_image_search/bin/build_models.sh``, which installs the packages first.
"""

import shutil
import sqlite3
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reverse_image_search import contract, layout, vector_database
from reverse_image_search.build_metadata import (
    Kept,
    keep_options,
    make_metadata,
    previous_metadata,
    what_is_kept,
)
from reverse_image_search.build_options import dataset_options, parse_options, training_options
from reverse_image_search.datasets import DATASETS, Dataset, DatasetError
from reverse_image_search.encoders import ENCODERS, EncoderError
from reverse_image_search.encoders.embedding import embed_each, embed_images
from reverse_image_search.evaluation.build_score import QualityError, print_score, score_gallery
from reverse_image_search.gallery import Gallery, GalleryMetadata
from reverse_image_search.gallery_writer import (
    GalleryWriter,
    continue_gallery,
    publish_gallery,
    remove_gallery,
)
from reverse_image_search.indexes import INDEXES, IndexOptions, VectorDatabaseError
from reverse_image_search.packages import PackageError, install_requirements
from reverse_image_search.serving import live
from reverse_image_search.serving.encoder_file import (
    encoder_digest,
    make_encoder_file,
    published_encoder_file,
    remove_trained_encoder,
)
from reverse_image_search.serving.export import ExportError, load_torchscript
from reverse_image_search.serving.file_system import UNCHANGED, PublishingError, check_space
from reverse_image_search.serving.index_files import write_index
from reverse_image_search.serving.memory import missing_memory
from reverse_image_search.serving.model_config import write_configs
from reverse_image_search.serving.publishing import KEEP_VERSIONS, staging, staging_update
from reverse_image_search.watch_folders import watch_folders

# On disk: gallery, index, and what is left to resume from; for tiny images, for photos.
_BYTES_PER_IMAGE = (4_000, 50_000)
_NEEDED_MEMORY = 1_500_000_000  # bytes; a full build was seen to use 1.0 GB
_WORK = f"{layout.WORK}/gallery.sqlite"  # the gallery while images are added to it


def main(arguments: list[str] | None = None) -> int:
    """Build and publish, once or whenever files change; returns the exit code."""
    options = parse_options(arguments)
    torch.set_float32_matmul_precision("highest")
    try:
        if options.watch:
            return watch_folders(options.images, lambda: _build_and_publish(copy(options)))
        return _build_and_publish(options)
    except KeyboardInterrupt:
        outcome = "What was published last stays." if options.watch else UNCHANGED
        print(f"\nbuild_models: stopped. {outcome}", file=sys.stderr)
        return 130


def _build_and_publish(options: Namespace) -> int:
    """Build and publish once; returns the exit code."""
    try:
        if missing := missing_memory(_NEEDED_MEMORY, "a build"):
            raise PublishingError(missing)
        previous = previous_metadata(options)
        keep_options(options, previous)
        if requirements := INDEXES[options.index].requirements:
            install_requirements(requirements)
        kept = what_is_kept(options, previous)
        if kept.is_update:
            publish, then = staging_update, vector_database.apply_changes
        else:
            publish, then = staging, vector_database.switch_index
        with publish(options.output_dir, partial(then, options.output_dir)) as folder:
            if previous_metadata(options) != previous:
                raise PublishingError("Another build has just been published. Run this again.")
            build(options, folder, kept)
        remove_trained_encoder(options.output_dir)
        remove_gallery(options.output_dir / _WORK)
        print(f"Published to {options.output_dir}.", flush=True)
        print(live.next_step(options.output_dir))
    except NothingToPublishError as outcome:
        print(f"{outcome}. What is published stays as it is.")
    except (
        DatasetError,
        EncoderError,
        ExportError,
        live.NotServedError,
        PackageError,
        PublishingError,
        QualityError,
        VectorDatabaseError,
    ) as error:
        print(f"build_models: {error}", file=sys.stderr)
        return 1
    except (OSError, sqlite3.OperationalError) as error:  # a full disk, for one
        where = getattr(error, "filename", None) or options.output_dir
        reason = getattr(error, "strerror", None) or error
        print(f"build_models: {where}: {reason}. {UNCHANGED}", file=sys.stderr)
        return 1
    return 0


class NothingToPublishError(Exception):
    """The published gallery is up to date, or only asked about."""


def build(options: Namespace, folder: Path, kept: Kept) -> None:
    """Write the model repositories and the gallery into the empty `folder`, checked and scored.

    An update is an index and a gallery; where the vectors are in a database, it is a gallery, and
    the database changes once that is published.

    Raises NothingToPublishError where that would be what is published already.
    """
    model_repo = folder / layout.MODEL_REPO
    index_spec, input_size = INDEXES[options.index], ENCODERS[options.encoder].input_size

    with _step("read"):
        dataset = DATASETS[options.dataset].load(dataset_options(options))
        check_space(options.output_dir, _BYTES_PER_IMAGE[dataset.is_photos] * len(dataset.gallery))

    if options.dry_run:
        with closing(Gallery(layout.gallery_file(options.output_dir))) as gallery:
            raise NothingToPublishError(dataset.preview(gallery))

    if kept.is_update:
        vector_database.apply_changes(options.output_dir)  # of an update that was interrupted

    with _step("encoder"):
        if kept.with_encoder:
            encoder_file = published_encoder_file(options.output_dir)
            recipe = kept.with_encoder.build_options.get("training_recipe")
        else:
            encoder_file, recipe = make_encoder_file(
                options.output_dir, options.encoder, dataset, training_options(options)
            )
        if not kept.is_update:
            target = layout.model_file(model_repo, contract.IMAGE_ENCODER.name)
            target.parent.mkdir(parents=True)
            shutil.copyfile(encoder_file, target)
        encoder = load_torchscript(encoder_file)

    with _step("embed"), _open_gallery(options, kept) as writer:
        encoder_id = encoder_digest(encoder_file)
        metadata = make_metadata(options, kept, dataset, writer, encoder_id, recipe)
        metadata = _embed(dataset, encoder, input_size, writer, metadata)
        has_changed = writer.has_changed
    if kept.gallery and not has_changed:
        remove_gallery(writer.path)
        raise NothingToPublishError("Nothing has changed")

    gallery = Gallery(writer.path)
    index_name = metadata.build_options.get("index_name", "")
    if kept.is_update and index_spec.database:
        vector_database.note_changes(options.output_dir, gallery)  # made after publishing
    else:
        ids, embeddings = gallery.embeddings()
        with _step("index"):
            if index_spec.database:
                vector_database.note_index(options.output_dir, options.index, index_name)
            index_options = IndexOptions(options.top_k, options.recall, index_name)
            folder_of_index = layout.version_folder(model_repo, contract.VECTOR_SIMILARITY.name)
            write_index(index_spec, ids, embeddings, index_options, folder_of_index)

    score: dict[str, np.ndarray] = {}
    if not kept.with_encoder:
        with _step("score"):
            embed = partial(embed_images, encoder, input_size=input_size)
            gate = ENCODERS[options.encoder].quality_gate if options.gated else {}
            score, scale = score_gallery(embed, gallery, embeddings, dataset, gate)
            metadata = replace(metadata, **scale._asdict())
            with GalleryWriter(writer.path) as writer:
                writer.set_metadata(metadata)

    with _step("gallery"):
        publish_gallery(writer.path, layout.gallery_file(folder), KEEP_VERSIONS)

    if not kept.is_update:
        sizes, threads = (embeddings.shape[1], options.top_k), ENCODERS[options.encoder].threads
        write_configs(folder, metadata, *sizes, index_spec, index_name, threads)
    _print_summary(folder, metadata, gallery, score)


def _open_gallery(options: Namespace, kept: Kept) -> GalleryWriter:
    """The gallery to write; one of files goes on from what is there."""
    work = options.output_dir / _WORK
    if not DATASETS[options.dataset].is_of_files:
        remove_gallery(work)
    published = layout.gallery_file(options.output_dir) if kept.gallery else None
    return continue_gallery(work, published)


def _embed(
    dataset: Dataset,
    encoder: nn.Module,
    input_size: tuple[int, int],
    writer: GalleryWriter,
    metadata: GalleryMetadata,
) -> GalleryMetadata:
    """Complete a gallery with the images of a dataset; returns `metadata` with all its classes."""
    writer.set_metadata(metadata)
    # With the file that will be served, so that an image finds itself at score 1.
    for image, embedding in embed_each(
        encoder, dataset.new_images(writer), lambda image: image.pixels, input_size
    ):
        writer.add(image.gallery_image(), embedding, image.file)
    metadata = replace(metadata, class_names=dataset.finish(writer))
    writer.set_metadata(metadata)
    writer.set_queries(query.gallery_image(id_) for id_, query in enumerate(dataset.queries))
    return metadata


@contextmanager
def _step(name: str) -> Iterator[None]:
    start = time.perf_counter()
    print(f"{name} ...", flush=True)
    yield
    print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def _print_summary(
    folder: Path, metadata: GalleryMetadata, gallery: Gallery, score: dict[str, np.ndarray]
) -> None:
    dims = gallery.embeddings(gallery.ids()[:1])[1].shape[1]
    identity = f"gallery {metadata.gallery_id}, encoder {metadata.encoder_id}"
    print(f"\n{identity}: {len(gallery):,} images, {dims} dimensions")
    print_score(score)
    model_repo = folder / layout.MODEL_REPO
    # An update of a database leaves the models as they are.
    for path in sorted(model_repo.rglob("*.*")) if any(model_repo.glob("*/*/*")) else ():
        print(f"  {path.relative_to(folder)}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    sys.exit(main())
