"""The machine's limit: the two served TorchScript files called directly, in one process.

python -m reverse_image_search.benchmark.in_process --output-dir . --threads 1 ...
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from reverse_image_search import contract
from reverse_image_search.benchmark.query_tensors import query_tensors
from reverse_image_search.gallery import Gallery
from reverse_image_search.indexes.exact import ExactIndex
from reverse_image_search.layout import (
    FIRST_VERSION,
    MODEL_FILENAME,
    MODEL_REPO,
    gallery_file,
    model_file,
)
from reverse_image_search.serving.export import load_torchscript, write_model_files


def load_models(output_dir: Path) -> tuple[torch.jit.ScriptModule, torch.jit.ScriptModule]:
    """The image encoder and the vector similarity of a build."""
    encoder, similarity = (
        load_torchscript(model_file(output_dir / MODEL_REPO, model.name))
        for model in contract.MODELS
    )
    return encoder, similarity


def build_embeddings(output_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) of a build's gallery and (n, D) of its queries, n at most 1,000."""
    encoder, _ = load_models(output_dir)
    _, embeddings = Gallery(gallery_file(output_dir)).embeddings()
    with torch.inference_mode():
        batches = torch.from_numpy(query_tensors(output_dir, 1000)).split(100)
        queries = torch.cat([encoder(batch) for batch in batches])
    return embeddings, queries.numpy()


def export_index(embeddings: torch.Tensor, top_k: int, folder: Path) -> Path:
    """TorchScript file, in the new `folder`, of an exact index of embeddings (N, D) float32."""
    index = ExactIndex(embeddings, torch.arange(len(embeddings)), top_k)
    write_model_files({MODEL_FILENAME: index}, folder / FIRST_VERSION, input_ndim=2)
    return folder / FIRST_VERSION / MODEL_FILENAME


def median_ms(search: Callable[[], object], least: int = 5, seconds: float = 1.0) -> float:
    """Median milliseconds of a call, of at least `least` calls and `seconds`, after three more."""
    for _ in range(3):
        search()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        search()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def measure(
    output_dir: Path, images: torch.Tensor, batch_sizes: list[int], seconds: float
) -> dict[int, dict]:
    """Queries per second and latency of whole searches, by batch size; `model_ms` is each model's
    own share of the mean.

    Parameters
    ----------
    images : (n, 3, height, width) float32, n at least the largest batch size
    seconds : for each batch size, after a warm-up of a fifth of it
    """
    encoder, similarity = load_models(output_dir)
    report = {}
    with torch.inference_mode():
        for size in batch_sizes:
            batches = [part for part in images.split(size) if len(part) == size]
            latencies: list[float] = []
            encoder_seconds = 0.0
            begin = time.perf_counter() + seconds / 5
            while (now := time.perf_counter()) < begin + seconds:
                embeddings = encoder(batches[len(latencies) % len(batches)])
                between = time.perf_counter()
                similarity(embeddings)
                if now >= begin:
                    latencies.append(time.perf_counter() - now)
                    encoder_seconds += between - now
            milliseconds = np.percentile(np.array(latencies) * 1e3, [50, 95, 99]).tolist()
            own_seconds = (encoder_seconds, sum(latencies) - encoder_seconds)
            report[size] = {
                "queries_per_second": size * len(latencies) / sum(latencies),
                "model_ms": {
                    model.name: 1e3 * seconds / len(latencies)
                    for model, seconds in zip(contract.MODELS, own_seconds, strict=True)
                },
                **dict(zip(("p50_ms", "p95_ms", "p99_ms"), milliseconds, strict=True)),
            }
    return report


def main() -> int:
    """Print the report as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="of a build")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = torch.from_numpy(query_tensors(options.output_dir, 256))
    print(json.dumps(measure(options.output_dir, images, options.batch_sizes, options.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
