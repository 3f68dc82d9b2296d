"""The exact index next to FAISS' `IndexFlatIP`: one thread each, taking turns.

    python -m reverse_image_search.benchmark.exact_search --output-dir .

Both search the gallery's real embeddings for the 100 nearest of the build's own queries.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

from reverse_image_search.benchmark.in_process import build_embeddings, export_index, median_ms
from reverse_image_search.serving.export import load_torchscript

_TOP_K = 100
_QUERIES = (1, 8, 32)  # in one call
_CALLS = 200  # per number of queries; a quarter of it for 32


def compare(gallery: np.ndarray, queries: np.ndarray) -> list[dict[str, float]]:
    """Median milliseconds of one call, and the largest difference of the scores.

    Parameters
    ----------
    gallery, queries : (N, D) and (n, D) float32, unit length

    Returns
    -------
    a row per number of queries in a call: queries, faiss_ms, here_ms, score_difference
    """
    faiss.omp_set_num_threads(1)
    torch.set_num_threads(1)
    index = faiss.IndexFlatIP(gallery.shape[1])
    index.add(gallery)
    with tempfile.TemporaryDirectory() as folder:
        model = load_torchscript(export_index(torch.from_numpy(gallery), _TOP_K, Path(folder)))
    rows = []
    with torch.inference_mode():
        for size in _QUERIES:
            faiss_seconds, own_seconds, difference = [], [], 0.0
            calls = _CALLS if size < 32 else _CALLS // 4
            for call in range(-5, calls):  # the first five warm up
                first = max(call, 0) * size % (len(queries) - size + 1)
                batch = queries[first : first + size]
                start = time.perf_counter()
                expected, _ = index.search(batch, _TOP_K)
                between = time.perf_counter()
                _, scores = model(torch.from_numpy(batch))
                end = time.perf_counter()
                difference = max(difference, float(np.abs(scores.numpy() - expected).max()))
                if call >= 0:
                    faiss_seconds.append(between - start)
                    own_seconds.append(end - between)
            rows.append(
                {
                    "queries": size,
                    "faiss_ms": 1e3 * float(np.median(faiss_seconds)),
                    "here_ms": 1e3 * float(np.median(own_seconds)),
                    "score_difference": difference,
                }
            )
    return rows


def measure_steps(gallery: np.ndarray, queries: np.ndarray) -> list[dict]:
    """Median milliseconds of the steps that a search may consist of, for 1 and for 32 queries."""
    torch.set_num_threads(1)
    rows = torch.from_numpy(gallery)
    columns = rows.t().contiguous()
    batches = [torch.from_numpy(queries[:size]) for size in (1, 32)]
    scores = [batch @ columns for batch in batches]
    groups = [part[:, : part.shape[1] // 64 * 64].unflatten(1, (-1, 64)) for part in scores]
    steps: dict[str, list[Callable[[], object]]] = {
        "product, vectors as rows": [lambda b=batch: torch.mm(b, rows.t()) for batch in batches],
        "product, dimensions as rows": [lambda b=batch: torch.mm(b, columns) for batch in batches],
        "top 100 of all scores": [lambda s=part: s.topk(_TOP_K) for part in scores],
        "maxima of groups of 64": [lambda g=group: g.amax(2) for group in groups],
    }
    with torch.inference_mode():
        return [
            {"step": name, "one_ms": median_ms(one), "batch_ms": median_ms(batch)}
            for name, (one, batch) in steps.items()
        ]


def main() -> int:
    """Print the rows as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="of a build")
    options = parser.parse_args()
    gallery, queries = build_embeddings(options.output_dir)
    report = {
        "dimensions": gallery.shape[1],
        "rows": compare(gallery, queries),
        "steps": measure_steps(gallery, queries),
    }
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
