"""Recall and latency of the indexes and of FAISS' peers, on one thread, at growing gallery sizes.

    python -m reverse_image_search.benchmark.engines --output-dir . --growth growth.png
    python -m reverse_image_search.benchmark.engines --sizes 60000 --recall recall.png

With MILVUS_URI in the environment, Milvus is one of them: a server that uses all processors.
Real embeddings of the build, repeated with noise beyond its size (see `index_search`). All engines
of a size are asked in turn in one process, so that their ratios hold on a noisy machine.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import torch

from reverse_image_search.benchmark.index_search import load_vectors
from reverse_image_search.benchmark.measurements import describe_machine, in_own_process
from reverse_image_search.benchmark.report import plot_lines
from reverse_image_search.command_line import make_parser
from reverse_image_search.indexes import INDEXES, IndexOptions, milvus_model
from reverse_image_search.layout import MODEL_FILENAME
from reverse_image_search.serving.export import load_torchscript, write_model_files

_TOP_K = 100
_BATCH_SIZES = (1, 8, 32)
_ROUNDS = 12  # in which each engine is asked once for each batch size; two warm up
_ROWS_AT_ONCE = 100_000
_MILVUS_TIMEOUT = 120.0  # seconds
_RECALLS = (0.9, 1.003)  # that are drawn

Search = Callable[[torch.Tensor], np.ndarray]  # (batch, D) -> ids (batch, K)


@dataclass(frozen=True)
class Engine:
    """Writes an index of unit-length vectors (N, D) into a folder, and loads it from there.

    `settings` trade recall for time; the first one is what a user would take.
    """

    write: Callable[[np.ndarray, Path, tuple], None]  # for all of the given settings
    load: Callable[[Path, float], Search]  # with one of them
    settings: tuple[float, ...] = (0,)


def _torchscript(name: str, *recalls: float) -> Engine:
    def write(vectors: np.ndarray, folder: Path, settings: tuple) -> None:
        ids = torch.arange(len(vectors))
        for setting in settings:
            options = IndexOptions(_TOP_K, setting or IndexOptions.recall)
            index = INDEXES[name].build(torch.from_numpy(vectors), ids, options)
            write_model_files(INDEXES[name].files(index), folder / str(setting), input_ndim=2)

    def load(folder: Path, setting: float) -> Search:
        model = load_torchscript(folder / str(setting) / MODEL_FILENAME)
        return lambda queries: model(queries)[0].numpy()

    return Engine(write, load, recalls or (0,))


def _faiss(factory: str, parameter: str = "", *settings: float) -> Engine:
    """An index of FAISS by its factory string; ``{lists}`` in it is about √N."""

    def write(vectors: np.ndarray, folder: Path, _settings: tuple) -> None:
        description = factory.format(lists=round(len(vectors) ** 0.5))
        index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        folder.mkdir(parents=True)
        faiss.write_index(index, str(folder / "index.faiss"))

    def load(folder: Path, setting: float) -> Search:
        index = faiss.read_index(str(folder / "index.faiss"))

        def search(queries: torch.Tensor) -> np.ndarray:
            if parameter:
                faiss.ParameterSpace().set_index_parameter(index, parameter, setting)
            return index.search(queries.numpy(), _TOP_K)[1]

        return search

    return Engine(write, load, settings or (0,))


def _milvus() -> Engine:
    """The collection ``benchmark`` in MILVUS_URI, over a connection that is kept."""
    uri, name = os.environ.get("MILVUS_URI", ""), "benchmark"

    def write(vectors: np.ndarray, _folder: Path, _settings: tuple) -> None:
        spec, ids = INDEXES["milvus"], torch.arange(len(vectors))
        if spec.database:
            spec.database.drop(name)
        spec.build(torch.from_numpy(vectors), ids, IndexOptions(_TOP_K, name=name))
        client = milvus_model.connect(uri, _MILVUS_TIMEOUT)
        while client.describe_index(name, milvus_model.VECTOR)["pending_index_rows"]:
            time.sleep(0.1)

    def load(_folder: Path, _setting: float) -> Search:
        client = milvus_model.connect(uri, _MILVUS_TIMEOUT)
        return lambda queries: milvus_model.search(
            client, name, queries.numpy(), _TOP_K, _MILVUS_TIMEOUT
        )[0]

    return Engine(write, load)


ENGINES = {
    "exact": _torchscript("exact"),
    "ivf": _torchscript("ivf", IndexOptions.recall, 0.9, 0.95, 0.98, 0.99),
    "FAISS flat": _faiss("Flat"),
    "FAISS IVF": _faiss("IVF{lists},Flat", "nprobe", 16, 2, 4, 8, 32, 64),
    "FAISS HNSW": _faiss("HNSW32", "efSearch", 200, 25, 50, 100, 400),
}
if os.environ.get("MILVUS_URI"):
    ENGINES["milvus"] = _milvus()


def measure_engines(output_dir: Path, size: int, names: list[str], sweep: bool) -> list[dict]:
    """A row for each engine and setting: recall_at_20 and _100, ms of a call by batch size.

    Also file_mb and build_seconds, of all settings of a sweep together, load_seconds and memory_mb.
    """
    queries, gallery = load_vectors(output_dir, size)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    truth = _exact_neighbors(queries, gallery)
    rows: list[dict[str, Any]] = []
    searches: list[Search] = []
    with tempfile.TemporaryDirectory() as temporary:
        facts = {}
        for name in names:
            settings = ENGINES[name].settings if sweep else ENGINES[name].settings[:1]
            folder, start = Path(temporary) / name, time.perf_counter()
            ENGINES[name].write(gallery, folder, settings)
            seconds = time.perf_counter() - start
            megabytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
            facts[name] = {"build_seconds": seconds, "file_mb": megabytes}
        del gallery
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        for name in names:
            for setting in ENGINES[name].settings if sweep else ENGINES[name].settings[:1]:
                before, start = psutil.Process().memory_info().rss, time.perf_counter()
                searches.append(ENGINES[name].load(Path(temporary) / name, setting))
                load_seconds = time.perf_counter() - start
                memory = (psutil.Process().memory_info().rss - before) / 1e6
                what = {"gallery": size, "engine": name, "setting": setting}
                figures = {"load_seconds": load_seconds, "memory_mb": memory}
                rows.append(what | facts[name] | figures)
    with torch.inference_mode():
        for row, search in zip(rows, searches, strict=True):
            found = np.concatenate([search(batch) for batch in queries.split(32)])
            for k in (20, _TOP_K):
                hits = [
                    len(np.intersect1d(a[:k], b[:k])) for a, b in zip(found, truth, strict=True)
                ]
                row[f"recall_at_{k}"] = sum(hits) / (k * len(truth))
        for batch_size in _BATCH_SIZES:
            times = np.empty((_ROUNDS, len(rows)))
            for turn in range(_ROUNDS):
                batch = queries[turn * batch_size % (len(queries) - batch_size) :][:batch_size]
                for column, search in enumerate(searches):
                    start = time.perf_counter()
                    search(batch)
                    times[turn, column] = 1e3 * (time.perf_counter() - start)
            for row, median in zip(rows, np.median(times[2:], axis=0), strict=True):
                row["ms"] = {**row.get("ms", {}), batch_size: float(median)}
    return rows


def _exact_neighbors(queries: torch.Tensor, gallery: np.ndarray) -> np.ndarray:
    """Ids of the nearest vectors (n, K), part by part of the gallery."""
    parts = [
        (queries @ torch.from_numpy(gallery[start : start + _ROWS_AT_ONCE]).t()).topk(_TOP_K)
        for start in range(0, len(gallery), _ROWS_AT_ONCE)
    ]
    ids = torch.cat([part.indices + i * _ROWS_AT_ONCE for i, part in enumerate(parts)], dim=1)
    best = torch.cat([part.values for part in parts], dim=1).topk(_TOP_K).indices
    return ids.gather(1, best).numpy()


def main() -> None:
    """Print a row per engine and size as JSON, and draw them."""
    parser = make_parser(main.__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60_000, 600_000])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--growth", type=Path, metavar="FILE", help="draw ms over gallery size")
    recall_help = "draw recall over queries/s, with all settings of the engines"
    parser.add_argument("--recall", type=Path, metavar="FILE", help=recall_help)
    options = parser.parse_args()
    print(describe_machine())
    rows = []
    for size in options.sizes:
        arguments = options.output_dir, size, options.engines, bool(options.recall)
        for row in in_own_process(measure_engines, *arguments):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if options.growth:
        plot_lines(options.growth, _lines(rows, lambda row: (row["gallery"], row["ms"][1], "")),
                   xlabel="vectors in the gallery", ylabel="ms for a query, one thread",
                   xscale="log", yscale="log", title=describe_machine())  # fmt: skip
    if options.recall:
        points = _lines(rows, lambda row: (row["recall_at_20"], 1e3 / row["ms"][1], row["setting"]))
        plot_lines(options.recall, points, xlabel="recall@20", ylabel="queries/s, one thread",
                   xlim=_RECALLS, yscale="log", title=describe_machine())  # fmt: skip


def _lines(rows: list[dict], point: Callable[[dict], tuple]) -> dict[str, list[tuple]]:
    """A line of sorted points for each engine."""
    lines: dict[str, list[tuple]] = {}
    for row in rows:
        lines.setdefault(row["engine"], []).append(point(row))
    return {name: sorted(points) for name, points in lines.items()}


if __name__ == "__main__":
    main()
