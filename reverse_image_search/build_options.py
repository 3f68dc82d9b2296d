"""The command line of a build."""

import os
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from reverse_image_search import layout
from reverse_image_search.command_line import number_type, positive_integer
from reverse_image_search.datasets import DATASETS, DatasetOptions
from reverse_image_search.encoders import ENCODERS, TrainingOptions
from reverse_image_search.indexes import INDEXES


def parse_options(arguments: list[str] | None) -> Namespace:
    """The options, with dataset and encoder chosen; exits with a message where they are wrong."""
    parser = _parser()
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


def _parser() -> ArgumentParser:
    root = layout.REPOSITORY_ROOT
    parser = ArgumentParser(
        prog="build_models.sh",
        description="Make the image encoder, embed the gallery and export both models for Triton.",
    )
    add, count = parser.add_argument, partial(parser.add_argument, type=positive_integer)
    count("--limit", metavar="N", help="use only the first N images of the gallery")
    count("--epochs", metavar="N", help="passes over the images (default: encoder's)")
    count("--top-k", metavar="K", help="neighbors served (default 100)")
    add("--data-dir", type=Path, default=root / "data", metavar="DIR", help="of the dataset")
    add("--output-dir", type=Path, default=root, metavar="DIR", help="where models and gallery go")
    add("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    add("--images", type=Path, nargs="+", metavar="DIR", help="folders of your own images")
    add("--add", type=Path, nargs="+", metavar="PATH", help="add these to your own images")
    add("--remove", type=Path, nargs="+", metavar="PATH", help="remove these from them")
    add("--dry-run", action="store_true", help="say what would change, and change nothing")
    add("--watch", action="store_true", help="do it again whenever files of --images change")
    labels_help = "CSV file of paths and labels for --images"
    add("--labels", type=os.path.abspath, metavar="FILE", help=labels_help)
    no_labels_help = "do not take names of folders as labels"
    add("--no-labels", action="store_true", default=None, help=no_labels_help)
    add("--dataset", choices=DATASETS, help="source of the images")
    add("--encoder", choices=ENCODERS, help="default: the one that suits the dataset")
    add("--index", choices=INDEXES, help="kind of vector search")
    recall_help = "share of the 20 nearest that an approximate index must find"
    share = number_type(float, lambda share: 0 < share <= 1, "a number above 0 and at most 1")
    add("--recall", type=share, help=recall_help)
    variant = partial(
        parser.add_mutually_exclusive_group().add_argument, action="store_const", dest="variant"
    )
    variant("--quick", const="quick", help="use the encoder's quicker variant")
    variant("--quality", const="quality", help="use the encoder's better, slower variant")
    add("--weights", type=Path, metavar="FILE", help="weights of a pretrained encoder")
    no_adapt_help = "leave the embeddings of a pretrained encoder as they are"
    add("--no-adapt", action="store_false", dest="adapt", help=no_adapt_help)
    add("--no-floor", action="store_true", help="publish even when the search quality is too low")
    return parser


def _choose_dataset(options: Namespace, parser: ArgumentParser) -> None:
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


def dataset_options(options: Namespace) -> DatasetOptions:
    """Those about the dataset."""
    return DatasetOptions(
        options.data_dir,
        options.limit,
        folders=tuple(options.images or ()),
        added=tuple(options.add or ()),
        removed=tuple(options.remove or ()),
        labels_file=Path(options.labels) if options.labels else None,
        has_labels=not options.no_labels,
    )


def training_options(options: Namespace) -> TrainingOptions:
    """Those about the encoder."""
    return TrainingOptions(options.epochs, options.seed, options.weights, options.adapt)
