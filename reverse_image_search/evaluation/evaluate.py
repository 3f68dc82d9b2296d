"""Measure the search of a running server, on what it answers. Run it through ``evaluate.sh``."""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reverse_image_search.client import Client, Neighbors, TritonError
from reverse_image_search.evaluation.baselines import Embed, make_baselines
from reverse_image_search.evaluation.build_score import draw_originals
from reverse_image_search.evaluation.copies import ALL, KINDS, make_copies
from reverse_image_search.evaluation.metrics import (
    bootstrap_interval,
    precision_at,
    ranks_of_originals,
    recall_at,
    score_same_kind,
)
from reverse_image_search.gallery import Gallery, GalleryError, open_gallery
from reverse_image_search.layout import REPOSITORY_ROOT, START_COMMAND

_IMAGES_AT_ONCE = 2000
_DEEPEST_RANK = 20  # of precision@20 and recall@20
# Scores closer than this are ties: sums in another order may rank them either way.
_TIE = 1e-5


class EvaluationError(Exception):
    """The server's answers cannot be evaluated; the message says why."""


@dataclass
class Scores:
    """All numbers of one encoder, one value a query.

    Attributes
    ----------
    same_kind : metric -> (queries,) float
    same_item : kind of copy -> (copies,) rank of the original, 1 is best
    """

    same_kind: dict[str, np.ndarray]
    same_item: dict[str, np.ndarray]


def main(arguments: list[str] | None = None) -> int:
    """Evaluate and report; returns the exit code."""
    options = _parse(arguments)
    try:
        evaluate(options)
    except (EvaluationError, GalleryError, TritonError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def evaluate(options: argparse.Namespace) -> None:
    """Ask the server, rank, print the tables, write the JSON file and the pictures."""
    gallery = open_gallery(options.output_dir / "gallery")
    client = Client(options.url, timeout=60)
    _check_build(client, gallery)
    query_images = np.asarray(gallery.query_images[: options.queries])
    query_labels = np.asarray(gallery.query_labels[: options.queries])
    original_ids = draw_originals(len(gallery), options.copies)

    gallery_embeddings = _embed_served(client, gallery.images, "gallery")
    query_embeddings = _embed_served(client, query_images, "queries")
    neighbors = client.find_similar(query_embeddings)
    check_ranking(query_embeddings, gallery_embeddings, neighbors)

    served = Scores(
        score_same_kind(query_embeddings, query_labels, gallery_embeddings, gallery.labels), {}
    )
    hits = gallery.labels[neighbors.ids] == query_labels[:, None]
    served.same_kind["precision_at_1"] = precision_at(hits, 1)
    served.same_kind["precision_at_20"] = precision_at(hits, _DEEPEST_RANK)
    for kind in KINDS:
        copies = make_copies(gallery.images[original_ids], kind)
        found = client.find_similar(_embed_served(client, copies, f"copies: {kind}"))
        served.same_item[kind] = _served_ranks(found, original_ids)

    baselines = {
        name: _score_offline(name, embed, gallery, query_images, query_labels, original_ids)
        for name, embed in make_baselines(gallery.images).items()
    }
    _print_report(gallery, query_labels, served, baselines)
    if options.json:
        report = _as_json(gallery, query_labels, served, baselines)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if options.pictures:
        from reverse_image_search.evaluation import pictures  # takes matplotlib, for pictures alone

        copies = make_copies(gallery.images[original_ids], ALL)
        examples = client.search(list(copies[: pictures.COPY_EXAMPLES]))
        pictures.draw_all(
            options.pictures,
            gallery,
            query_labels,
            served,
            neighbors.ids,
            copies,
            original_ids,
            examples.ids,
        )


def check_ranking(
    query_embeddings: np.ndarray, gallery_embeddings: np.ndarray, neighbors: Neighbors
) -> None:
    """Compare the served ids and scores with an exact ranking, ties aside.

    Raises
    ------
    EvaluationError : a neighbour or its score is not what the embeddings say
    """
    k = neighbors.ids.shape[1]
    for start in range(0, len(query_embeddings), 250):
        rows = slice(start, start + 250)
        similarity = query_embeddings[rows] @ gallery_embeddings.T
        best = -np.sort(-np.partition(similarity, -k, axis=1)[:, -k:], axis=1)
        of_ids = np.take_along_axis(similarity, neighbors.ids[rows], axis=1)
        wrong = np.abs(of_ids - best) > _TIE
        if wrong.any():
            raise EvaluationError(
                f"{wrong.sum()} of {wrong.size} served neighbours are not among the nearest: the "
                "gallery's embeddings are not those that the server's encoder makes"
            )
        if np.abs(neighbors.scores[rows] - of_ids).max() > _TIE:
            raise EvaluationError("served scores are not the similarities of the served ids")


def _check_build(client: Client, gallery: Gallery) -> None:
    for model, build_id in client.build_ids().items():
        if build_id != gallery.build_id:
            raise EvaluationError(
                f"{model} is of build {build_id or 'unknown'}, the gallery of {gallery.build_id}. "
                f"Restart the server with {START_COMMAND}"
            )


def _embed_served(client: Client, images: np.ndarray, name: str) -> np.ndarray:
    starts = range(0, len(images), _IMAGES_AT_ONCE)
    bar = tqdm(starts, f"embed {name}", unit=f" x {_IMAGES_AT_ONCE} images", leave=False)
    return np.concatenate(
        [client.embed(list(images[start : start + _IMAGES_AT_ONCE])) for start in bar]
    )


def _served_ranks(neighbors: Neighbors, original_ids: np.ndarray) -> np.ndarray:
    """Rank of each original among the served ids; beyond the last where it is not served."""
    if neighbors.ids.shape[1] < _DEEPEST_RANK:
        raise EvaluationError(
            f"the server returns {neighbors.ids.shape[1]} neighbours, recall@20 needs 20. Build "
            "with --top-k 20 or more"
        )
    found = neighbors.ids == original_ids[:, None]
    return np.where(found.any(axis=1), 1 + found.argmax(axis=1), found.shape[1] + 1)


def _score_offline(
    name: str,
    embed: Embed,
    gallery: Gallery,
    query_images: np.ndarray,
    query_labels: np.ndarray,
    original_ids: np.ndarray,
) -> Scores:
    print(f"baseline: {name} ...", flush=True)
    gallery_embeddings = embed(gallery.images)
    copies = embed(make_copies(gallery.images[original_ids], ALL))
    return Scores(
        score_same_kind(embed(query_images), query_labels, gallery_embeddings, gallery.labels),
        {ALL: ranks_of_originals(copies, original_ids, gallery_embeddings)},
    )


def _print_report(
    gallery: Gallery, query_labels: np.ndarray, served: Scores, baselines: dict[str, Scores]
) -> None:
    copies = len(served.same_item[ALL])
    print(
        f"\nBuild {gallery.build_id}: {len(query_labels):,} queries and {copies:,} copies of each "
        f"kind against {len(gallery):,} images.\n"
        "95 % confidence intervals in brackets (bootstrap over queries).\n"
    )
    columns = ("P@1", "P@20", "mAP", "MAP@R", "copies R@1", "copies R@20")
    print(f"{'':20}" + "".join(f"{column:23}" for column in columns))
    for name, scores in {"this build": served, **baselines}.items():
        ranks = scores.same_item[ALL]
        values = [*scores.same_kind.values(), recall_at(ranks, 1), recall_at(ranks, 20)]
        print(f"{name:20}" + "".join(f"{_with_interval(value):23}" for value in values))
    print(f"\n{'kind of copy':20}{'R@1':23}{'R@20':23}")
    for kind, ranks in served.same_item.items():
        recalls = (_with_interval(recall_at(ranks, k)) for k in (1, 20))
        print(f"{kind:20}" + "".join(f"{recall:23}" for recall in recalls))
    print(f"\n{'class':20}{'P@1':23}{'P@20':23}{'mAP':23}{'MAP@R':23}")
    for label, name in enumerate(gallery.class_names):
        of_class = query_labels == label
        if of_class.any():
            values = [values[of_class] for values in served.same_kind.values()]
            print(f"{name:20}" + "".join(f"{_with_interval(value):23}" for value in values))


def _with_interval(values: np.ndarray) -> str:
    low, high = bootstrap_interval(values)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def _as_json(
    gallery: Gallery, query_labels: np.ndarray, served: Scores, baselines: dict[str, Scores]
) -> dict:
    per_class = {
        name: _means(served.same_kind, query_labels == label)
        for label, name in enumerate(gallery.class_names)
        if (query_labels == label).any()
    }
    return {
        **_means(served.same_kind),
        "per_class": per_class,
        "copies": _recalls(served),
        "baselines": {
            name: {**_means(scores.same_kind), "copies": _recalls(scores)}
            for name, scores in baselines.items()
        },
        "build_id": gallery.build_id,
    }


def _means(same_kind: dict[str, np.ndarray], of: np.ndarray | slice = slice(None)) -> dict:
    return {metric: float(values[of].mean()) for metric, values in same_kind.items()}


def _recalls(scores: Scores) -> dict[str, dict[str, float]]:
    return {
        kind: {f"recall_at_{k}": float(recall_at(ranks, k).mean()) for k in (1, 20)}
        for kind, ranks in scores.same_item.items()
    }


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate.sh", description="Measure how good the search of the running server is."
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to FILE")
    parser.add_argument(
        "--pictures",
        type=Path,
        default=REPOSITORY_ROOT / "doc",
        metavar="DIR",
        help="where the pictures go (default doc/)",
    )
    parser.add_argument(
        "--queries", type=_positive, metavar="N", help="ask with the first N test images only"
    )
    parser.add_argument(
        "--copies",
        type=_positive,
        default=2000,
        metavar="N",
        help="copies of each kind (default 2000)",
    )
    parser.add_argument(
        "--url",
        default=os.environ.get("TRITON_URL", "http://127.0.0.1:8000"),
        help="address of the server (default: TRITON_URL)",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("OUTPUT_DIR", REPOSITORY_ROOT)),
        help="folder that holds gallery/ (default: OUTPUT_DIR of .env)",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
