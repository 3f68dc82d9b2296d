"""The exact index in galleries of growing size, next to FAISS' `IndexFlatIP`; one thread each.

    python -m reverse_image_search.benchmark.index_search --output-dir .

Real embeddings of the build, repeated with noise beyond its size, so that neighborhoods stay real.
Each size is measured in a process of its own, which bounds the memory and shows its peak.
"""

import json
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import psutil
import torch

from reverse_image_search.benchmark.in_process import load_models
from reverse_image_search.benchmark.load_generator import query_tensors
from reverse_image_search.benchmark.measurements import describe_machine, in_own_process
from reverse_image_search.benchmark.report import plot_lines
from reverse_image_search.command_line import make_parser
from reverse_image_search.gallery import Gallery
from reverse_image_search.indexes.exact import ExactIndex
from reverse_image_search.layout import MODEL_FILENAME, gallery_file
from reverse_image_search.serving.export import load_torchscript, write_model_files

_NOISE = 0.02  # standard deviation, per component of a unit vector
_TOP_K = 100
_BATCH_SIZES = (1, 8, 32)
_SECONDS = 1.0  # that each batch size is measured for, at least


def measure_index_search(output_dir: Path, size: int) -> dict:
    """Both indexes on a gallery of `size`: exact_ms and faiss_ms of a call by batch size, their
    largest score_difference; load_seconds, memory_mb and file_mb of the exact one.
    """
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    queries, gallery = load_vectors(output_dir, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "1" / MODEL_FILENAME
        index = ExactIndex(torch.from_numpy(gallery), torch.arange(size), _TOP_K)
        write_model_files({path.name: index}, path.parent, input_ndim=2)
        del index
        before, start = psutil.Process().memory_info().rss, time.perf_counter()
        exact = load_torchscript(path)
        row = {
            "gallery": size,
            "load_seconds": time.perf_counter() - start,
            "memory_mb": (psutil.Process().memory_info().rss - before) / 1e6,
            "file_mb": path.stat().st_size / 1e6,
        }
    peer = faiss.IndexFlatIP(gallery.shape[1])
    peer.add(gallery / np.linalg.norm(gallery, axis=1, keepdims=True))
    exact_ms: dict[int, float] = {}
    faiss_ms: dict[int, float] = {}
    difference = 0.0
    for batch_size in _BATCH_SIZES:
        times: list[tuple[float, float]] = []
        begin = time.perf_counter()
        while len(times) < 8 or time.perf_counter() < begin + _SECONDS:
            first = len(times) * batch_size % (len(queries) - batch_size + 1)
            batch = queries[first : first + batch_size]
            start = time.perf_counter()
            expected, _ = peer.search(batch.numpy(), _TOP_K)
            between = time.perf_counter()
            with torch.inference_mode():
                _, scores = exact(batch)
            times.append((between - start, time.perf_counter() - between))
            difference = max(difference, float(np.abs(scores.numpy() - expected).max()))
        medians = 1e3 * np.median(times[3:], axis=0)  # three warm up
        faiss_ms[batch_size], exact_ms[batch_size] = medians.tolist()
    return row | {"exact_ms": exact_ms, "faiss_ms": faiss_ms, "score_difference": difference}


def load_vectors(output_dir: Path, size: int) -> tuple[torch.Tensor, np.ndarray]:
    """Embeddings of 256 example queries, and `size` of the gallery's, with noise if repeated."""
    with torch.inference_mode():
        queries = load_models(output_dir)[0](torch.from_numpy(query_tensors(output_dir, 256)))
    _, embeddings = Gallery(gallery_file(output_dir)).embeddings()
    gallery = np.resize(embeddings, (size, embeddings.shape[1]))
    generator = np.random.default_rng(0)
    for part in np.split(gallery, range(len(embeddings), size, len(embeddings)))[1:]:
        part += _NOISE * generator.standard_normal(part.shape, np.float32)  # in place
    return queries, gallery


def main() -> None:
    """Print a row per size as JSON; draw them with --plot."""
    parser = make_parser(main.__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[60_000, 600_000, 6_000_000])
    parser.add_argument("--plot", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        rows.append(in_own_process(measure_index_search, options.output_dir, size))
        print(json.dumps(rows[-1]), flush=True)
    if options.plot:
        lines = {
            f"{index}, {queries} at once": [
                (row["gallery"], row[f"{index}_ms"][queries] / queries, "") for row in rows
            ]
            for index in ("exact", "faiss")
            for queries in _BATCH_SIZES
        }
        plot_lines(options.plot, lines, xlabel="vectors in the gallery", ylabel="ms for a query",
                   xscale="log", yscale="log", title=describe_machine())  # fmt: skip


if __name__ == "__main__":
    main()
