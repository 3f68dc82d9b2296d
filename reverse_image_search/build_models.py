"""Build everything that Triton and the app need: load, train, embed, export, check, publish.

Run it through ``reverse_image_search/bin/build_models.sh``, which installs the packages first.
"""

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from reverse_image_search import contract
from reverse_image_search.datasets.fashion_mnist import Dataset, DatasetError, load_fashion_mnist
from reverse_image_search.encoders.embedding import embed_images, to_pixels
from reverse_image_search.encoders.pretrained import (
    PRETRAINED_ENCODERS,
    PretrainedEncoderError,
    load_pretrained_encoder,
)
from reverse_image_search.evaluation.build_score import (
    QualityError,
    check_floors,
    score_embeddings,
)
from reverse_image_search.gallery import Gallery, write_gallery
from reverse_image_search.indexes.exact import VectorSimilarity
from reverse_image_search.layout import REPOSITORY_ROOT, START_COMMAND
from reverse_image_search.serving.export import (
    ExportError,
    check_export,
    ensemble_config,
    export_torchscript,
    load_torchscript,
    model_config,
)
from reverse_image_search.serving.publishing import PublishingError, staging
from reverse_image_search.training.train import (
    DEFAULT_EPOCHS,
    ENSEMBLE_SIZE,
    train_encoder,
    train_ensemble,
)

_OWN_ENCODER = "fashion"
_CHECKED_IMAGES = 64  # examples that an exported file and its module must agree on


def main(arguments: list[str] | None = None) -> int:
    """Build and publish; returns the exit code."""
    options = _parse(arguments)
    torch.set_float32_matmul_precision("highest")
    try:
        with staging(options.output_dir) as folder:
            build(options, folder)
        print(f"Published to {options.output_dir}. Next: {START_COMMAND}")
    except (
        DatasetError,
        ExportError,
        PretrainedEncoderError,
        PublishingError,
        QualityError,
    ) as error:
        print(f"build_models: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        where = error.filename or options.output_dir
        print(
            f"build_models: {where}: {error.strerror or error}. "
            "Nothing was published; what was built before is unchanged.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            "\nbuild_models: stopped. Nothing was published; what was built before is unchanged.",
            file=sys.stderr,
        )
        return 130
    return 0


def build(options: argparse.Namespace, folder: Path) -> None:
    """Write `model_repo` and `gallery` into the empty `folder`, checked and scored."""
    with _step("load"):
        dataset = load_fashion_mnist(options.data_dir, options.limit)

    with _step("train"):
        encoder = _make_encoder(options, dataset)

    with _step("export"):
        encoder_file = _model_file(folder, contract.IMAGE_ENCODER)
        export_torchscript(encoder, encoder_file)
        served_encoder = load_torchscript(encoder_file)

    with _step("embed"):
        # With the file that will be served, so that an image finds itself at score 1.
        embeddings = embed_images(served_encoder, dataset.train_images, progress=True)
        similarity = VectorSimilarity(embeddings, options.top_k)
        similarity_file = _model_file(folder, contract.VECTOR_SIMILARITY)
        export_torchscript(similarity, similarity_file)

    with _step("check"):
        examples = to_pixels(dataset.test_images[:_CHECKED_IMAGES])
        check_export(served_encoder, encoder, examples)
        check_export(load_torchscript(similarity_file), similarity, served_encoder(examples))

    with _step("score"):
        score = _score(served_encoder, embeddings, dataset)
        if options.judged:
            check_floors(score)

    build_id = _build_id(embeddings, similarity.top_k, dataset)
    _write_configs(folder, build_id, embeddings.shape[1], similarity.top_k)
    write_gallery(folder / "gallery", _gallery_of(dataset, build_id))
    _print_summary(folder, build_id, embeddings, score)


def _make_encoder(options: argparse.Namespace, dataset: Dataset) -> nn.Module:
    if options.encoder != _OWN_ENCODER:
        return load_pretrained_encoder(options.encoder, options.weights)
    # The GPU trains where there is one; the exported file is the same either way.
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train = train_ensemble if options.quality else train_encoder
    encoder = train(
        dataset.train_images.to(device),
        dataset.train_labels.to(device),
        epochs=options.epochs,
        seed=options.seed,
    )
    return encoder.to("cpu")


def _score(encoder: nn.Module, embeddings: Tensor, dataset: Dataset) -> dict[str, float]:
    return score_embeddings(
        lambda images: embed_images(encoder, torch.from_numpy(images)).numpy(),
        embeddings.numpy(),
        dataset.train_images.numpy(),
        dataset.train_labels.numpy(),
        dataset.test_images.numpy(),
        dataset.test_labels.numpy(),
    )


def _model_file(folder: Path, model: contract.ModelSpec) -> Path:
    return folder / "model_repo" / model.name / "1" / "model.pt"


def _build_id(embeddings: Tensor, top_k: int, dataset: Dataset) -> str:
    """Equal for equal models and galleries, so that those of two builds never pass for one.

    The gallery's embeddings stand for the encoder; the bytes of a TorchScript file change with
    the order in which a process exported its modules.
    """
    digest = hashlib.sha256(f"top {top_k}".encode())
    for tensor in (embeddings, dataset.train_images, dataset.train_labels, dataset.test_images):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:12]


def _write_configs(folder: Path, build_id: str, embedding_dim: int, top_k: int) -> None:
    warmup_dims = {
        contract.IMAGE_ENCODER: (3, 28, 28),
        contract.VECTOR_SIMILARITY: (embedding_dim,),
    }
    for model, dims in warmup_dims.items():
        text = model_config(model, build_id, embedding_dim, top_k, dims)
        (folder / "model_repo" / model.name / "config.pbtxt").write_text(text)
    ensemble = folder / "ensemble_repo" / contract.IMAGE_SEARCH.name
    (ensemble / "1").mkdir(parents=True)  # Triton wants a version, though it holds no file
    (ensemble / "config.pbtxt").write_text(ensemble_config(build_id, embedding_dim, top_k))


def _gallery_of(dataset: Dataset, build_id: str) -> Gallery:
    return Gallery(
        build_id,
        dataset.name,
        dataset.class_names,
        dataset.train_images.numpy(),
        dataset.train_labels.numpy(),
        dataset.test_images.numpy(),
        dataset.test_labels.numpy(),
    )


@contextmanager
def _step(name: str) -> Iterator[None]:
    start = time.perf_counter()
    print(f"{name} ...", flush=True)
    yield
    print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)


def _print_summary(
    folder: Path, build_id: str, embeddings: Tensor, score: dict[str, float]
) -> None:
    count, dims = embeddings.shape
    print(f"\nbuild {build_id}: {count:,} images, {dims} dimensions")
    print(
        f"  same kind: P@1 {score['precision_at_1']:.3f}, P@20 {score['precision_at_20']:.3f}, "
        f"mAP {score['map']:.3f}"
    )
    print(
        f"  same item: R@1 {score['recall_at_1']:.3f}, R@20 {score['recall_at_20']:.3f} "
        "(a sample; evaluate.sh measures all)"
    )
    for path in sorted((folder / "model_repo").rglob("*.*")):
        print(f"  {path.relative_to(folder)}  {path.stat().st_size / 1e6:.1f} MB")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="build_models.sh",
        description="Train the image encoder, embed the gallery and export both models for Triton.",
    )
    parser.add_argument(
        "--limit", type=_positive, metavar="N", help="train on and index only the first N images"
    )
    parser.add_argument(
        "--epochs",
        type=_positive,
        metavar="N",
        help=f"passes over the images (default {DEFAULT_EPOCHS})",
    )
    parser.add_argument(
        "--top-k",
        type=_positive,
        default=100,
        metavar="K",
        help="neighbours that the server returns (default 100)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=REPOSITORY_ROOT / "data",
        metavar="DIR",
        help="where the dataset is or goes (default data/)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=REPOSITORY_ROOT,
        metavar="DIR",
        help="where model_repo/ and gallery/ go (default: OUTPUT_DIR of .env)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="random seed (default 0)")
    parser.add_argument(
        "--quality",
        action="store_true",
        help=f"train {ENSEMBLE_SIZE} encoders and serve them as one: {ENSEMBLE_SIZE} times the "
        "training and the work for a query's embedding",
    )
    parser.add_argument(
        "--encoder",
        choices=(_OWN_ENCODER, *PRETRAINED_ENCODERS),
        default=_OWN_ENCODER,
        help="fashion (default: trained here) or one with ImageNet weights",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="weights for a pretrained encoder, instead of torchvision's download",
    )
    parser.add_argument(
        "--no-floor",
        action="store_true",
        help="publish a full build even when its search quality is too low",
    )
    options = parser.parse_args(arguments)
    if options.weights and options.encoder == _OWN_ENCODER:
        parser.error("--weights belongs to a pretrained encoder: name it with --encoder")
    if options.quality and options.encoder != _OWN_ENCODER:
        parser.error("--quality trains encoders: a pretrained one takes no part in it")
    # A short or small build is not expected to be good, nor an encoder for other pictures.
    options.judged = not (
        options.no_floor or options.limit or options.epochs or options.encoder != _OWN_ENCODER
    )
    if options.epochs is None:
        options.epochs = DEFAULT_EPOCHS
    return options


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
