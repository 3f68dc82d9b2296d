"""Measure how good the answers of a running server are. Run it through ``evaluate.sh``."""

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reverse_image_search.client import Client, Neighbors, TritonError
from reverse_image_search.client.search import WrongAnswerError, check_identity
from reverse_image_search.command_line import make_parser, print_table
from reverse_image_search.evaluation import metrics
from reverse_image_search.evaluation.baselines import make_baselines, pixels_of_one_size
from reverse_image_search.evaluation.copies import ALL
from reverse_image_search.evaluation.examples import Examples
from reverse_image_search.evaluation.figures import COPY_EXAMPLES, draw_all
from reverse_image_search.evaluation.photo_copies import kinds_of_copies
from reverse_image_search.gallery import Gallery, GalleryError
from reverse_image_search.layout import gallery_file

_IMAGES_AT_ONCE = 64
_REQUESTS_IN_FLIGHT = 4
_ROWS_AT_ONCE = 2000  # of the gallery file
_DEEPEST_RANK = 20  # of precision@20 and recall@20
_MOST_MISSES = 0.1  # share of its neighbors that an approximate index may miss
# Scores closer than this are ties: sums in another order may rank them either way.
_TIE = 1e-5


class EvaluationError(Exception):
    """The server's answers cannot be evaluated; the message says why."""


def main(arguments: list[str] | None = None) -> int:
    """Evaluate and report; returns the exit code."""
    parser = make_parser("Measure how good the search of the server is.", queries=int, copies=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--figures", type=Path, metavar="DIR")
    try:
        evaluate(parser.parse_args(arguments))
    except (EvaluationError, GalleryError, TritonError, WrongAnswerError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def evaluate(options: argparse.Namespace) -> None:
    """Search with queries and copies, score the answers, print and write the report."""
    client = Client(options.url, timeout=60)
    examples = Examples(Gallery(gallery_file(options.output_dir)), options.queries, options.copies)
    check_identity(client, examples.gallery)

    served, neighbors = score_served(client, examples)
    baselines = score_baselines(examples)
    print_report(examples, served, baselines)
    if options.json:
        options.json.write_text(json.dumps(as_json(examples, served, baselines), indent=2) + "\n")
    if options.figures:
        _, make_copies = kinds_of_copies(examples.gallery.metadata.is_photos)
        copies = make_copies(examples.originals[:COPY_EXAMPLES], ALL, 0)
        draw_all(options.figures, examples, served, neighbors, copies, client.search(copies))


def score_served(client: Client, examples: Examples) -> tuple[metrics.Scores, Neighbors | None]:
    """Scores of the server's answers, and its answers to the queries."""
    scores, neighbors = metrics.Scores({}, {}), None
    own_rows, size = examples.own_rows, len(examples.ids)

    def check(embeddings: np.ndarray, neighbors: Neighbors) -> None:
        rows = examples.rows_of(neighbors.ids)
        is_exact = examples.gallery.metadata.build_options.get("is_exact", True)
        recalls = check_ranking(embeddings, examples.embeddings, rows, neighbors, is_exact)
        if not is_exact:
            scores.index_level = recalls

    if len(examples.query_ids):
        if own_rows is None:
            embeddings = _embed(client, examples.query_images(), "queries")
        else:
            embeddings = examples.embeddings[own_rows]
        neighbors = client.find_similar(embeddings)
        check(embeddings, neighbors)
        if own_rows is not None:
            neighbors, size = leave_out(neighbors, examples.query_ids), size - 1
        scores.category_level = metrics.score_category_level(
            embeddings, examples.query_labels, examples.embeddings, examples.labels, own_rows
        )
        hits = examples.labels_of(neighbors.ids) == examples.query_labels[:, None]
        hits = hits[:, :size]  # what follows is padding
        scores.category_level["precision_at_1"] = metrics.precision_at(hits, 1)
        scores.category_level["precision_at_20"] = metrics.precision_at(hits, _DEEPEST_RANK)
    kinds, make_copies = kinds_of_copies(examples.gallery.metadata.is_photos)
    for kind in kinds:
        copies = make_copies(examples.originals, kind, 0)
        embeddings = _embed(client, copies, f"copies: {kind}")
        found = client.find_similar(embeddings)
        if neighbors is None and kind == ALL:
            check(embeddings, found)
        ranks = _served_ranks(found, examples.ids[examples.original_rows])
        scores.instance_level[kind] = metrics.recalls(ranks)
    return scores, neighbors


def leave_out(neighbors: Neighbors, own_ids: np.ndarray) -> Neighbors:
    """`neighbors` (n, K) without the query itself, or without the last: (n, K - 1)."""
    is_own = neighbors.ids == own_ids[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    shape = len(own_ids), neighbors.ids.shape[1] - 1
    return Neighbors(*(values[~is_own].reshape(shape) for values in neighbors))


def check_ranking(
    query_embeddings: np.ndarray,
    gallery_embeddings: np.ndarray,
    rows: np.ndarray,
    neighbors: Neighbors,
    is_exact: bool = True,
) -> dict[str, np.ndarray]:
    """Compare what an index returns with an exact ranking of the gallery's own embeddings.

    `rows` (n, K) of `gallery_embeddings` are what `neighbors.ids` stand for, or -1.

    Returns
    -------
    ``recall_at_20`` and ``recall_at_K`` (n,): which share of the 20 and of the K nearest, ties
    aside, are among the first 20 and K that were returned; of a smaller gallery, its size

    Raises
    ------
    EvaluationError : scores are not those of the ids, an id is there twice, or too many neighbors
        are wrong: for an exact index, any, or any in another order
    """
    recalls: dict[str, list[np.ndarray]] = {}
    k = min(rows.shape[1], len(gallery_embeddings))  # what follows is padding
    rows, scores = rows[:, :k], neighbors.scores[:, :k]
    for start in range(0, len(query_embeddings), 250):
        part = slice(start, start + 250)
        similarity = query_embeddings[part] @ gallery_embeddings.T
        best = -np.sort(-np.partition(similarity, -k, axis=1)[:, -k:], axis=1)
        of_rows = np.take_along_axis(similarity, np.maximum(rows[part], 0), axis=1)
        is_misplaced = np.abs(of_rows - best) > _TIE
        wrong = (rows[part] < 0) | (is_misplaced if is_exact else of_rows < best[:, -1:] - _TIE)
        if wrong.mean() > (0 if is_exact else _MOST_MISSES):
            raise EvaluationError(
                f"{wrong.sum()} of {wrong.size} served neighbors are not among the nearest: the "
                "gallery's embeddings do not come from the server's encoder"
            )
        if np.abs(scores[part] - of_rows)[rows[part] >= 0].max(initial=0) > _TIE:
            raise EvaluationError("served scores are not the similarities of the served ids")
        in_order = np.sort(rows[part], axis=1)
        if ((in_order[:, 1:] == in_order[:, :-1]) & (in_order[:, 1:] >= 0)).any():
            raise EvaluationError("an id is served twice for one query")
        for depth in sorted({min(_DEEPEST_RANK, k), k}):
            found = (rows[part] >= 0) & (of_rows >= best[:, depth - 1 : depth] - _TIE)
            recalls.setdefault(f"recall_at_{depth}", []).append(found[:, :depth].mean(axis=1))
    return {name: np.concatenate(parts) for name, parts in recalls.items()}


def score_baselines(examples: Examples) -> dict[str, metrics.Scores]:
    """Scores of embeddings that need no training, over the same examples."""
    metadata, gallery = examples.gallery.metadata, examples.gallery
    parts = np.split(examples.ids, range(_ROWS_AT_ONCE, len(examples.ids), _ROWS_AT_ONCE))
    gallery_pixels = np.concatenate([
        pixels_of_one_size([image.pixels for image in gallery.images(part)], metadata)
        for part in parts
    ])  # fmt: skip
    own_rows = examples.own_rows
    if own_rows is None:
        query_pixels = pixels_of_one_size(examples.query_images(), metadata)
    else:
        query_pixels = gallery_pixels[own_rows]
    _, make_copies = kinds_of_copies(metadata.is_photos)
    copies = pixels_of_one_size(make_copies(examples.originals, ALL, 0), metadata)
    scores = {}
    for name, embed in make_baselines(gallery_pixels, metadata.is_photos).items():
        print(f"baseline: {name} ...", flush=True)
        embeddings = embed(gallery_pixels)
        ranks = metrics.ranks_of_originals(embed(copies), examples.original_rows, embeddings)
        scores[name] = metrics.Scores({}, {ALL: metrics.recalls(ranks)})
        if len(query_pixels):
            scores[name].category_level = metrics.score_category_level(
                embed(query_pixels), examples.query_labels, embeddings, examples.labels, own_rows
            )
    return scores


def print_report(
    examples: Examples, served: metrics.Scores, baselines: dict[str, metrics.Scores]
) -> None:
    """Tables of all scores with confidence intervals."""
    gallery = examples.gallery
    of_gallery = "" if examples.own_rows is None else " (images of the gallery, each left out)"
    print(
        f"\nGallery {gallery.gallery_id}, encoder {gallery.encoder_id}: "
        f"{len(examples.query_ids):,} queries{of_gallery} and {len(examples.originals):,} copies "
        f"of each kind against {len(gallery):,} images.\n"
        "95 % confidence intervals in brackets (bootstrap over queries)."
    )
    for name, recalls in served.index_level.items():
        k = name.rpartition("_")[2]
        print(f"The index finds {recalls.mean():.2%} of the {k} nearest (recall@{k}).")
    per_class = examples.by_class(served.category_level)
    columns = ["P@1", "P@20", "mAP", "MAP@R"] if served.category_level else []
    print_table(
        ["", *columns, "copies R@1", "copies R@20"],
        [
            _row(name, scores.category_level | scores.instance_level[ALL])
            for name, scores in {"this build": served, **baselines}.items()
        ],
    )
    print_table(
        ["kind of copy", "R@1", "R@20"], itertools.starmap(_row, served.instance_level.items())
    )
    if columns:
        print_table(["class", *columns], itertools.starmap(_row, per_class.items()))


def _row(name: str, scores: dict[str, np.ndarray]) -> list[str]:
    return [name, *map(metrics.format_interval, scores.values())]


def as_json(
    examples: Examples, served: metrics.Scores, baselines: dict[str, metrics.Scores]
) -> dict:
    """Means of all scores; without labels there are no category-level ones."""
    return {
        **_means(served.category_level),
        "per_class": _means(examples.by_class(served.category_level)),
        "copies": _means(served.instance_level),
        "baselines": {
            name: _means({**scores.category_level, "copies": scores.instance_level})
            for name, scores in baselines.items()
        },
        **({"index": _means(served.index_level)} if served.index_level else {}),
        "gallery_id": examples.gallery.gallery_id,
        "encoder_id": examples.gallery.encoder_id,
    }


def _means(scores: dict) -> dict:
    return {
        name: _means(values) if isinstance(values, dict) else float(values.mean())
        for name, values in scores.items()
    }


def _embed(client: Client, images: Sequence[np.ndarray], name: str) -> np.ndarray:
    starts = range(0, len(images), _IMAGES_AT_ONCE)
    with (
        ThreadPoolExecutor(_REQUESTS_IN_FLIGHT) as executor,
        tqdm(total=len(images), desc=f"embed {name}", unit=" images", leave=False) as bar,
    ):
        embeddings = []
        parts = (images[start : start + _IMAGES_AT_ONCE] for start in starts)
        for part in executor.map(client.embed, parts):
            embeddings.append(part)
            bar.update(len(part))
        return np.concatenate(embeddings)


def _served_ranks(neighbors: Neighbors, original_ids: np.ndarray) -> np.ndarray:
    """Rank of each original among the served ids; beyond the last where it is not served."""
    if neighbors.ids.shape[1] < _DEEPEST_RANK:
        raise EvaluationError(
            f"the server returns {neighbors.ids.shape[1]} neighbors, recall@20 needs 20. Build "
            "with --top-k 20 or more"
        )
    found = neighbors.ids == original_ids[:, None]
    return np.where(found.any(axis=1), 1 + found.argmax(axis=1), found.shape[1] + 1)


if __name__ == "__main__":
    sys.exit(main())
