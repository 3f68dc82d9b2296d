"""Build everything that Triton and the app need: read, encode, index, export, check, publish.

Run it through ``reverse_image_search/bin/build_models.sh``, which installs the packages first.
"""

import argparse
import hashlib
import os
import secrets
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch

from reverse_image_search import contract, layout
from reverse_image_search.command_line import positive_integer
from reverse_image_search.datasets import (
    DATASETS,
    Dataset,
    DatasetError,
    DatasetOptions,
    LabeledImage,
)
from reverse_image_search.encoders import ENCODERS, EncoderError, TrainingOptions
from reverse_image_search.encoders.embedding import embed_each, embed_images, to_pixels
from reverse_image_search.evaluation.build_score import QualityError, check_quality, score_build
from reverse_image_search.evaluation.metrics import format_interval
from reverse_image_search.evaluation.originals import Originals
from reverse_image_search.evaluation.score_scale import measure_score_scale
from reverse_image_search.gallery import (
    Gallery,
    GalleryError,
    GalleryImage,
    GalleryMetadata,
    make_thumbnail,
    pixel_digest,
)
from reverse_image_search.gallery_writer import (
    GalleryWriter,
    continue_gallery,
    publish_gallery,
    remove_gallery,
)
from reverse_image_search.indexes import INDEXES, IndexOptions, IndexSpec, VectorDatabaseError
from reverse_image_search.packages import PackageError, install_requirements
from reverse_image_search.serving import live
from reverse_image_search.serving.export import (
    ExportError,
    check_export,
    load_torchscript,
    write_model_files,
)
from reverse_image_search.serving.file_system import UNCHANGED, PublishingError, check_space
from reverse_image_search.serving.memory import missing_memory
from reverse_image_search.serving.model_config import write_configs
from reverse_image_search.serving.publishing import (
    KEEP_VERSIONS,
    next_version,
    staging,
    staging_update,
)
from reverse_image_search.vector_database import (
    apply_changes,
    is_index_lost,
    note_changes,
    note_index,
    switch_index,
)
from reverse_image_search.watch_folders import watch_folders

# On disk: gallery, index, and what is left to resume from; for tiny images, for photos.
_BYTES_PER_IMAGE = (4_000, 50_000)
_NEEDED_MEMORY = 1_500_000_000  # bytes; a full build was seen to use 1.0 GB
_CHECKED_IMAGES = 64  # on which an exported file and its module must agree
_TRAINED = Path(".build/trained")  # of an output folder: what training leaves to resume from
_WORK = Path(".build/gallery.sqlite")  # the gallery while images are added to it
# Options that an update of a gallery keeps, and their defaults.
_KEPT_OPTIONS = {
    "index": next(iter(INDEXES)),
    "top_k": 100,
    "recall": IndexOptions.recall,
    "labels": None,
    "no_labels": False,
}
_IMAGES_NDIM, _EMBEDDINGS_NDIM = 4, 2  # with the batch dimension


def main(arguments: list[str] | None = None) -> int:
    """Build and publish, once or whenever files change; returns the exit code."""
    options = _parse(arguments)
    torch.set_float32_matmul_precision("highest")
    try:
        if options.watch:
            return watch_folders(options.images, lambda: _build_and_publish(copy(options)))
        return _build_and_publish(options)
    except KeyboardInterrupt:
        outcome = "What was published last stays." if options.watch else UNCHANGED
        print(f"\nbuild_models: stopped. {outcome}", file=sys.stderr)
        return 130


def _build_and_publish(options: argparse.Namespace) -> int:
    """Build and publish once; returns the exit code."""
    try:
        if missing := missing_memory(_NEEDED_MEMORY, "a build"):
            raise PublishingError(missing)
        previous = _previous_metadata(options)
        _keep_options(options, previous)
        kept = _kept_encoder(options, previous)
        spec = INDEXES[options.index]
        if spec.requirements:
            install_requirements(spec.requirements)
        is_update = _is_update(options, kept) and not is_index_lost(options.output_dir)
        publish, finish = (staging_update, apply_changes) if is_update else (staging, switch_index)
        with publish(options.output_dir, partial(finish, options.output_dir)) as folder:
            if _previous_metadata(options) != previous:
                raise PublishingError("Another build has just been published. Run this again.")
            build(options, folder, previous, kept, is_update)
        shutil.rmtree(options.output_dir / _TRAINED, ignore_errors=True)
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


def build(
    options: argparse.Namespace,
    folder: Path,
    previous: GalleryMetadata | None,
    kept: GalleryMetadata | None,
    is_update: bool,
) -> None:
    """Write the model repositories and the gallery into the empty `folder`, checked and scored.

    Goes on with the `previous` gallery, and its ids, if there is one; `kept` is the same where its
    encoder stays, too. An update of it is an index and a gallery; where the vectors are in a
    database, it is a gallery, and the database changes once that is published.

    Raises NothingToPublishError where that would be what is published already.
    """
    model_repo = folder / layout.MODEL_REPO
    encoder_spec, index_spec = ENCODERS[options.encoder], INDEXES[options.index]

    with _step("read"):
        dataset = DATASETS[options.dataset].load(_dataset_options(options))
        check_space(options.output_dir, _BYTES_PER_IMAGE[dataset.is_photos] * len(dataset.gallery))

    if options.dry_run:
        with closing(Gallery(layout.gallery_file(options.output_dir))) as gallery:
            raise NothingToPublishError(dataset.preview(gallery))

    if is_update:
        apply_changes(options.output_dir)  # of an update that was interrupted

    with _step("encoder"):
        if kept:
            recipe = kept.build_options.get("training_recipe")
            published = options.output_dir / layout.MODEL_REPO
            encoder_file = layout.model_file(published, contract.IMAGE_ENCODER.name)
        else:
            recipe = _training_recipe(options, dataset)
            encoder_file = _make_encoder_file(options, dataset, recipe)
        if not is_update:
            target = layout.model_file(model_repo, contract.IMAGE_ENCODER.name)
            target.parent.mkdir(parents=True)
            shutil.copyfile(encoder_file, target)
        encoder = load_torchscript(encoder_file)
        encoder_id = _digest(encoder_file)

    with _step("embed"), _open_gallery(options, previous) as writer:
        gallery_id = writer.metadata().get("gallery_id") or secrets.token_hex(6)
        build_options = {**_build_options(options, kept), "training_recipe": recipe}
        if not index_spec.is_exact:
            build_options["is_exact"] = False  # for evaluations
        if index_spec.database:
            version = next_version(options.output_dir)
            new_name = f"gallery_{gallery_id}_{encoder_id}_{version}"
            index_name = kept.build_options["index_name"] if kept and is_update else new_name
            build_options["index_name"] = index_name
        else:
            index_name = ""
        metadata = GalleryMetadata(
            gallery_id=gallery_id,
            encoder_id=encoder_id,
            dataset=previous.dataset if previous and not options.images else dataset.name,
            class_names=writer.labels(),
            encoder_height=encoder_spec.input_size[0],
            encoder_width=encoder_spec.input_size[1],
            encoder_is_grayscale=encoder_spec.is_grayscale,
            shows_objects_on_black=dataset.shows_objects_on_black,
            is_photos=dataset.is_photos,
            build_options=build_options,
            score_scale=kept.score_scale if kept else None,
            duplicate_threshold=kept.duplicate_threshold if kept else None,
        )
        writer.set_metadata(metadata)
        # With the file that will be served, so that an image finds itself at score 1.
        for image, embedding in embed_each(
            encoder, dataset.new_images(writer), lambda image: image.pixels, encoder_spec.input_size
        ):
            writer.add(_gallery_image(image), embedding, image.file)
        metadata = replace(metadata, class_names=dataset.finish(writer))
        writer.set_metadata(metadata)
        writer.set_queries(map(_gallery_image, dataset.queries, count()))
        has_changed = writer.has_changed
    if previous and not has_changed:
        remove_gallery(writer.path)
        raise NothingToPublishError("Nothing has changed")

    gallery = Gallery(writer.path)
    if is_update and index_spec.database:
        note_changes(options.output_dir, gallery)  # made once the gallery is published
    else:
        ids, embeddings = gallery.embeddings()
        with _step("index"):
            if index_spec.database:
                note_index(options.output_dir, options.index, index_name)
            index_options = IndexOptions(options.top_k, options.recall, index_name)
            folder_of_index = layout.version_folder(model_repo, contract.VECTOR_SIMILARITY.name)
            _write_index(index_spec, ids, embeddings, index_options, folder_of_index)

    score: dict[str, np.ndarray] = {}
    if not kept:
        with _step("score"):
            embed = partial(embed_images, encoder, input_size=encoder_spec.input_size)
            originals, labels = Originals(gallery), gallery.labels()
            score = score_build(
                embed,
                originals,
                embeddings,
                labels,
                dataset.queries,
                dataset.is_photos,
                gallery.sources(),
            )
            if options.gated:
                check_quality(score, encoder_spec.quality_gate)
            scale = measure_score_scale(embed, originals, embeddings, labels, dataset.is_photos)
            metadata = replace(metadata, **scale._asdict())
            with GalleryWriter(writer.path) as writer:
                writer.set_metadata(metadata)

    with _step("gallery"):
        publish_gallery(writer.path, layout.gallery_file(folder), KEEP_VERSIONS)

    if not is_update:
        write_configs(
            folder,
            metadata,
            embeddings.shape[1],
            options.top_k,
            index_backend=index_spec.backend,
            index_parameters=_index_parameters(index_spec, index_name),
            index_warms_up_itself=index_spec.warms_up_itself,
        )
    _print_summary(folder, metadata, gallery, score)


def _write_index(
    spec: IndexSpec, ids: np.ndarray, embeddings: np.ndarray, options: IndexOptions, folder: Path
) -> None:
    """Build an index and write its files into the empty version `folder`, checked."""
    vectors = torch.from_numpy(embeddings)
    index = spec.build(vectors, torch.from_numpy(ids), options).eval()
    write_model_files(spec.files(index), folder, _EMBEDDINGS_NDIM)
    exported = folder / layout.MODEL_FILENAME
    if exported.exists():
        check_export(load_torchscript(exported), index, vectors[:_CHECKED_IMAGES])


def _index_parameters(spec: IndexSpec, name: str) -> dict[str, str]:
    """What the configuration of a model says about an index, besides its identity."""
    collection = {contract.COLLECTION_PARAMETER: name} if name else {}
    requirements = {contract.REQUIREMENTS_PARAMETER: spec.requirements} if spec.requirements else {}
    return collection | requirements


def _previous_metadata(options: argparse.Namespace) -> GalleryMetadata | None:
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


def _keep_options(options: argparse.Namespace, previous: GalleryMetadata | None) -> None:
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


def _build_options(options: argparse.Namespace, kept: GalleryMetadata | None) -> dict[str, object]:
    """What an update goes on with, JSON."""
    folders = [os.path.realpath(folder) for folder in options.images or ()]
    if options.add or options.remove:
        assert kept
        folders = kept.build_options["folders"]
    recipe = kept.build_options["encoder_recipe"] if kept else _encoder_recipe(options)
    values = {name: getattr(options, name) for name in ("encoder", *_KEPT_OPTIONS)}
    return {**values, "encoder_recipe": recipe, "folders": folders}


def _is_update(options: argparse.Namespace, kept: GalleryMetadata | None) -> bool:
    """Whether only gallery and index of what is published change."""
    return kept is not None and all(
        kept.build_options[name] == getattr(options, name) for name in ("index", "top_k", "recall")
    )


def _open_gallery(options: argparse.Namespace, previous: GalleryMetadata | None) -> GalleryWriter:
    """The gallery to write; one of files goes on from what is there."""
    work = options.output_dir / _WORK
    if not DATASETS[options.dataset].is_of_files:
        remove_gallery(work)
    return continue_gallery(work, layout.gallery_file(options.output_dir) if previous else None)


def _kept_encoder(
    options: argparse.Namespace, previous: GalleryMetadata | None
) -> GalleryMetadata | None:
    """The previous gallery, if this build uses its encoder: the same, or none was asked for."""
    if previous is None or previous.build_options["encoder"] != options.encoder:
        return None
    is_same = previous.build_options["encoder_recipe"] == _encoder_recipe(options)
    return previous if is_same or not options.names_encoder else None


def _make_encoder_file(options: argparse.Namespace, dataset: Dataset, recipe: str) -> Path:
    """Export the encoder, or reuse the published or an interrupted build's; returns its file."""
    spec, name = ENCODERS[options.encoder], layout.MODEL_FILENAME
    finished = options.output_dir / _TRAINED / recipe / name
    published = layout.model_file(
        options.output_dir / layout.MODEL_REPO, contract.IMAGE_ENCODER.name
    )
    if finished.exists():
        print("Resuming an interrupted build: its encoder is already trained.", flush=True)
    elif recipe == _published_recipe(options.output_dir, published):
        print("The published encoder is the one that this build would train.", flush=True)
        return published
    else:
        training_options = TrainingOptions(
            options.epochs, options.seed, options.weights, options.adapt
        )
        encoder = spec.make(dataset, training_options)
        part = finished.parent.with_suffix(f".{os.getpid()}")
        shutil.rmtree(finished.parent.parent, ignore_errors=True)  # of other recipes
        write_model_files({name: encoder}, part, _IMAGES_NDIM)
        exported = load_torchscript(part / name)
        for examples in _example_batches(dataset):
            check_export(exported, encoder, examples, spec.export_tolerance)
        part.rename(finished.parent)
    return finished


def _published_recipe(output_dir: Path, encoder_file: Path) -> str | None:
    """The `_training_recipe` of the published encoder, if its file is what was built."""
    try:
        with closing(Gallery(layout.gallery_file(output_dir))) as gallery:
            metadata = gallery.metadata
        if metadata.encoder_id == _digest(encoder_file):
            return metadata.build_options.get("training_recipe")
    except (GalleryError, OSError):
        pass
    return None


def _digest(encoder_file: Path) -> str:
    """The `encoder_id` of an exported encoder."""
    return hashlib.sha256(encoder_file.read_bytes()).hexdigest()[:12]


def _encoder_recipe(options: argparse.Namespace) -> str:
    """Digest of the options that determine the encoder."""
    keys = ("encoder", "epochs", "seed", "weights", "adapt")
    digest = hashlib.sha256(repr([str(getattr(options, key)) for key in keys]).encode())
    if options.weights and options.weights.is_file():  # not its name alone
        digest.update(options.weights.read_bytes())
    return digest.hexdigest()[:16]


def _training_recipe(options: argparse.Namespace, dataset: Dataset) -> str:
    """Digest of everything that determines the encoder: options, images, packages, and code."""
    values = [_encoder_recipe(options), torch.__version__, dataset.name]
    digest = hashlib.sha256(repr(values).encode() + dataset.fingerprint())
    for room in ("encoders", "training"):
        for path in sorted((Path(__file__).parent / room).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _example_batches(dataset: Dataset) -> Iterator[torch.Tensor]:
    """Some images, batched by size: (n, 3, height, width)."""
    examples = [image.pixels for image in dataset.sample(_CHECKED_IMAGES)]
    for shape in sorted({image.shape for image in examples}):
        yield to_pixels(np.stack([image for image in examples if image.shape == shape]))


def _gallery_image(image: LabeledImage, image_id: int = 0) -> GalleryImage:
    pixels, file = image.pixels, image.file
    if file and file.photo:
        facts = (*file.photo.size, file.sha256, file.thumbnail)
    else:
        facts = (pixels.shape[1], pixels.shape[0], pixel_digest(pixels), make_thumbnail(pixels))
    return GalleryImage(image_id, image.source, image.label, *facts)


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
    categories = {"P@1": "precision_at_1", "P@20": "precision_at_20", "mAP": "map"}
    copies = {"R@1": "recall_at_1", "R@20": "recall_at_20"}
    for title, metrics in (("same category", categories), ("perturbed copies", copies)):
        figures = [
            f"{name} {format_interval(score[key])}" for name, key in metrics.items() if key in score
        ]
        if figures:
            count = len(score[next(iter(metrics.values()))])
            print(f"  {title}: {', '.join(figures)} ({count:,} drawn at random)")
    if score:
        print("  (95 % confidence intervals in brackets; evaluate.sh measures more)")
    model_repo = folder / layout.MODEL_REPO
    # An update of a database leaves the models as they are.
    for path in sorted(model_repo.rglob("*.*")) if any(model_repo.glob("*/*/*")) else ():
        print(f"  {path.relative_to(folder)}  {path.stat().st_size / 1e6:.1f} MB")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    root = layout.REPOSITORY_ROOT
    parser = argparse.ArgumentParser(
        prog="build_models.sh",
        description="Make the image encoder, embed the gallery and export both models for Triton.",
    )
    add = parser.add_argument
    add(
        "--limit",
        type=positive_integer,
        metavar="N",
        help="use only the first N images of the gallery",
    )
    add(
        "--epochs",
        type=positive_integer,
        metavar="N",
        help="passes over the images (default: encoder's)",
    )
    add("--top-k", type=positive_integer, metavar="K", help="neighbors served (default 100)")
    add("--data-dir", type=Path, default=root / "data", metavar="DIR", help="of the dataset")
    add("--output-dir", type=Path, default=root, metavar="DIR", help="where models and gallery go")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    add("--images", type=Path, nargs="+", metavar="DIR", help="folders of your own images")
    add("--add", type=Path, nargs="+", metavar="PATH", help="add these to your own images")
    add("--remove", type=Path, nargs="+", metavar="PATH", help="remove these from them")
    add("--dry-run", action="store_true", help="say what would change, and change nothing")
    add("--watch", action="store_true", help="do it again whenever files of --images change")
    add(
        "--labels",
        type=os.path.abspath,
        metavar="FILE",
        help="CSV file of paths and labels for --images",
    )
    add(
        "--no-labels",
        action="store_true",
        default=None,
        help="do not take names of folders as labels",
    )
    add("--dataset", choices=DATASETS, help="source of the images")
    add("--encoder", choices=ENCODERS, help="default: the one that suits the dataset")
    add("--index", choices=INDEXES, help="kind of vector search")
    recall_help = "share of the 20 nearest that an approximate index must find"
    add("--recall", type=_share, help=recall_help)
    variant = partial(
        parser.add_mutually_exclusive_group().add_argument, action="store_const", dest="variant"
    )
    variant("--quick", const="quick", help="use the encoder's quicker variant")
    variant("--quality", const="quality", help="use the encoder's better, slower variant")
    add("--weights", type=Path, metavar="FILE", help="weights of a pretrained encoder")
    no_adapt_help = "leave the embeddings of a pretrained encoder as they are"
    add("--no-adapt", action="store_false", dest="adapt", help=no_adapt_help)
    add("--no-floor", action="store_true", help="publish even when the search quality is too low")
    options = parser.parse_args(arguments)
    kept_by_updates = ("encoder", "weights", "epochs", "seed", "variant")
    options.names_encoder = not options.adapt or any(getattr(options, k) for k in kept_by_updates)
    _choose_dataset(options, parser)
    options.encoder = options.encoder or DATASETS[options.dataset].default_encoder
    if options.variant:
        variant = getattr(ENCODERS[options.encoder], f"{options.variant}_variant")
        if not variant:
            parser.error(f"--{options.variant}: the encoder {options.encoder} has no such variant")
        options.encoder = variant
    spec = ENCODERS[options.encoder]
    if options.weights and spec.default_epochs:
        parser.error("--weights needs a pretrained encoder: name one with --encoder")
    # A short or small build is not expected to be good.
    options.gated = not (options.no_floor or options.limit or options.epochs)
    options.epochs = options.epochs or spec.default_epochs
    return options


def _choose_dataset(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Set `dataset`, by default one that suits the other options."""
    of_files = ("images", "add", "remove", "dry_run", "watch", "labels", "no_labels")
    given = [name for name in of_files if getattr(options, name)]
    if options.dataset is None:
        is_of_files = bool(given)
        options.dataset = next(n for n, spec in DATASETS.items() if spec.is_of_files == is_of_files)
    if DATASETS[options.dataset].is_of_files:
        if not (options.images or options.add or options.remove):
            parser.error("name the folders of your images with --images DIR")
        if options.images and (options.add or options.remove):
            parser.error("--images names all images; --add and --remove go without it")
        if options.watch and (not options.images or options.dry_run):
            parser.error("--watch goes with --images DIR, and without --dry-run")
        if not options.images and options.names_encoder:
            parser.error("another encoder has to see all images: name them with --images DIR")
    elif given:
        option = given[0].replace("_", "-")
        parser.error(f"--{option}: the dataset {options.dataset} is not made of files")


def _dataset_options(options: argparse.Namespace) -> DatasetOptions:
    return DatasetOptions(
        options.data_dir,
        options.limit,
        folders=tuple(options.images or ()),
        added=tuple(options.add or ()),
        removed=tuple(options.remove or ()),
        labels_file=Path(options.labels) if options.labels else None,
        has_labels=not options.no_labels,
    )


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 and at most 1")
    return share


if __name__ == "__main__":
    sys.exit(main())
