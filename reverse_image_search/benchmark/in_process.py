"""The machine's limit: the two served TorchScript files called directly, in one process.

python -m reverse_image_search.benchmark.in_process --output-dir . --threads 1 ...
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from reverse_image_search import contract
from reverse_image_search.benchmark.query_tensors import query_tensors
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import MODEL_REPO, gallery_file, model_file
from reverse_image_search.serving.export import load_torchscript


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
    models = load_models(output_dir)
    report = {}
    for size in batch_sizes:
        batches = [part for part in images.split(size) if len(part) == size]
        times: list[tuple[float, float]] = []  # seconds in each model
        begin = time.perf_counter() + seconds / 5
        with torch.inference_mode():
            while (start := time.perf_counter()) < begin + seconds:
                embeddings = models[0](batches[len(times) % len(batches)])
                between = time.perf_counter()
                models[1](embeddings)
                if start >= begin:
                    times.append((between - start, time.perf_counter() - between))
        milliseconds = 1e3 * np.array(times)  # (searches, 2)
        latencies = milliseconds.sum(axis=1)
        names = [model.name for model in contract.MODELS]
        report[size] = {
            "queries_per_second": 1e3 * size / latencies.mean(),
            "model_ms": dict(zip(names, milliseconds.mean(axis=0).tolist(), strict=True)),
            **{f"p{p}_ms": float(np.percentile(latencies, p)) for p in (50, 95, 99)},
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
