"""Exact search in galleries of 60 thousand to 6 million vectors.

    python -m reverse_image_search.benchmark.growth --output-dir .

Real embeddings of the build, repeated with noise, so that the neighborhoods stay real. Each size
is built, saved and measured in a process of its own, which bounds the memory and shows its peak.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from reverse_image_search.benchmark.in_process import build_embeddings, export_index, median_ms
from reverse_image_search.benchmark.measurements import describe_machine
from reverse_image_search.serving.export import load_torchscript

_NOISE = 0.02  # standard deviation, per component of a unit vector
_BATCH_SIZE = 32
_TOP_K = 100


def main() -> int:
    """Print a row for each size; write them with --json, draw them with --plot."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="of a build")
    parser.add_argument("--sizes", type=int, nargs="+", default=[60_000, 600_000, 6_000_000])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    embeddings, _ = build_embeddings(options.output_dir)
    context = multiprocessing.get_context("spawn")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            path = _in_process(context, _write, embeddings, size, Path(folder) / str(size))
            rows.append(_in_process(context, _measure, embeddings, size, path))
            path.unlink()
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    if options.plot:
        from reverse_image_search.benchmark.plot import plot_growth

        plot_growth(rows, describe_machine(), options.plot)
    return 0


def _in_process(context, function, *arguments):
    with context.Pool(1) as pool:
        return pool.apply(function, arguments)


def _write(embeddings: np.ndarray, size: int, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    originals = torch.from_numpy(embeddings)
    gallery = torch.empty(size, originals.shape[1])
    for start in range(0, size, len(originals)):
        part = originals[: size - start]
        noise = _NOISE * torch.randn(part.shape, generator=generator) if start else 0
        gallery[start : start + len(part)] = part + noise
    return export_index(gallery, _TOP_K, folder)


def _measure(embeddings: np.ndarray, size: int, path: Path) -> dict:
    torch.set_num_threads(1)
    memory_before = _memory_mb()
    start = time.perf_counter()
    model = load_torchscript(path)
    load_seconds = time.perf_counter() - start
    queries = torch.from_numpy(embeddings[:: len(embeddings) // _BATCH_SIZE][:_BATCH_SIZE].copy())
    with torch.inference_mode():
        one = median_ms(lambda: model(queries[:1]))
        batch = median_ms(lambda: model(queries)) / _BATCH_SIZE
    return {
        "gallery": size,
        "one_ms": one,
        "batch_ms": batch,
        "memory_mb": _memory_mb() - memory_before,
        "load_seconds": load_seconds,
        "file_mb": path.stat().st_size / 1e6,
    }


def _memory_mb() -> float:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e3


if __name__ == "__main__":
    sys.exit(main())
