"""Recall and latency of the indexes and of FAISS' peers, on one thread, at growing gallery sizes.

    python -m reverse_image_search.benchmark.engines --output-dir . --plot engines.png

Real embeddings of the build, repeated with noise beyond its size (see `index_search`). All engines
of a size are asked in turn in one process, so that their ratios hold on a noisy machine.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import psutil
import torch

from reverse_image_search.benchmark.index_search import load_vectors
from reverse_image_search.benchmark.measurements import describe_machine, in_own_process
from reverse_image_search.benchmark.report import plot_lines
from reverse_image_search.command_line import make_parser
from reverse_image_search.indexes import INDEXES, IndexOptions
from reverse_image_search.layout import MODEL_FILENAME
from reverse_image_search.serving.export import load_torchscript, write_model_files

_TOP_K = 100
_BATCH_SIZES = (1, 8, 32)
_ROUNDS = 12  # in which each engine is asked once for each batch size; two warm up
_ROWS_AT_ONCE = 100_000

Search = Callable[[torch.Tensor], np.ndarray]  # (batch, D) -> ids (batch, K)


@dataclass(frozen=True)
class Engine:
    """Writes an index of unit-length vectors (N, D) into a folder, and loads it from there."""

    write: Callable[[np.ndarray, Path], None]
    load: Callable[[Path], Search]


def _torchscript(name: str) -> Engine:
    def write(vectors: np.ndarray, folder: Path) -> None:
        ids = torch.arange(len(vectors))
        index = INDEXES[name].build(torch.from_numpy(vectors), ids, IndexOptions(_TOP_K))
        write_model_files(INDEXES[name].files(index), folder, input_ndim=2)

    def load(folder: Path) -> Search:
        model = load_torchscript(folder / MODEL_FILENAME)
        return lambda queries: model(queries)[0].numpy()

    return Engine(write, load)


def _faiss(factory: str, **parameters: int) -> Engine:
    """An index of FAISS by its factory string; ``{lists}`` in it is about √N."""

    def write(vectors: np.ndarray, folder: Path) -> None:
        description = factory.format(lists=round(len(vectors) ** 0.5))
        index = faiss.index_factory(vectors.shape[1], description, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        folder.mkdir(parents=True)
        faiss.write_index(index, str(folder / "index.faiss"))

    def load(folder: Path) -> Search:
        index = faiss.read_index(str(folder / "index.faiss"))
        for key, value in parameters.items():
            faiss.ParameterSpace().set_index_parameter(index, key, value)
        return lambda queries: index.search(queries.numpy(), _TOP_K)[1]

    return Engine(write, load)


ENGINES = {
    "exact": _torchscript("exact"),
    "ivf": _torchscript("ivf"),
    "FAISS flat": _faiss("Flat"),
    "FAISS IVF, 8 probes": _faiss("IVF{lists},Flat", nprobe=8),
    "FAISS IVF, 32 probes": _faiss("IVF{lists},Flat", nprobe=32),
    "FAISS HNSW": _faiss("HNSW32", efSearch=200),
}


def measure_engines(output_dir: Path, size: int, names: list[str]) -> dict:
    """By engine: recall_at_20 and _100, build_seconds, load_seconds, memory_mb, file_mb, ms."""
    queries, gallery = load_vectors(output_dir, size)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    truth = _exact_neighbors(queries, gallery)
    rows: dict[str, dict] = {}
    searches: dict[str, Search] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            folder = Path(temporary) / name / "1"
            start = time.perf_counter()
            ENGINES[name].write(gallery, folder)
            rows[name] = {"build_seconds": time.perf_counter() - start}
        del gallery
        torch.set_num_threads(1)
        faiss.omp_set_num_threads(1)
        for name in names:
            folder = Path(temporary) / name / "1"
            before, start = psutil.Process().memory_info().rss, time.perf_counter()
            searches[name] = ENGINES[name].load(folder)
            rows[name]["load_seconds"] = time.perf_counter() - start
            rows[name]["memory_mb"] = (psutil.Process().memory_info().rss - before) / 1e6
            rows[name]["file_mb"] = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    with torch.inference_mode():
        for name, search in searches.items():
            found = np.concatenate([search(batch) for batch in queries.split(32)])
            for k in (20, _TOP_K):
                hits = [
                    len(np.intersect1d(a[:k], b[:k])) for a, b in zip(found, truth, strict=True)
                ]
                rows[name][f"recall_at_{k}"] = sum(hits) / (k * len(truth))
        for size_ in _BATCH_SIZES:
            times = np.empty((_ROUNDS, len(names)))
            for turn in range(_ROUNDS):
                batch = queries[turn * size_ % (len(queries) - size_) :][:size_]
                for column, name in enumerate(names):
                    start = time.perf_counter()
                    searches[name](batch)
                    times[turn, column] = 1e3 * (time.perf_counter() - start)
            for name, median in zip(names, np.median(times[2:], axis=0), strict=True):
                rows[name].setdefault("ms", {})[size_] = float(median)
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
    """Print a row per engine and size as JSON; draw recall against queries a second with --plot."""
    parser = make_parser(main.__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60_000, 600_000])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(describe_machine())
    lines: dict[str, list[tuple]] = {name: [] for name in options.engines}
    for size in options.sizes:
        rows = in_own_process(measure_engines, options.output_dir, size, options.engines)
        for name, row in rows.items():
            print(json.dumps({"gallery": size, "engine": name} | row), flush=True)
            lines[name].append((row["recall_at_20"], 1e3 / row["ms"][1], f"{size:,}"))
    if options.plot:
        plot_lines(options.plot, lines, xlabel="recall@20", ylabel="queries/s, one thread",
                   yscale="log", title=describe_machine())  # fmt: skip


if __name__ == "__main__":
    main()
