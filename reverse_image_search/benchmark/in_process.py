"""The limit: the two served TorchScript files, called in a process of its own, nothing around them.

python -m reverse_image_search.benchmark.in_process --model-repo model_repo --threads 1 ...
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
from reverse_image_search.encoders.embedding import embed_images, to_pixels
from reverse_image_search.gallery import open_gallery
from reverse_image_search.serving.export import load_torchscript


def load_models(model_repo: Path) -> tuple[torch.jit.ScriptModule, torch.jit.ScriptModule]:
    """The image encoder and the vector similarity of a model repository."""
    encoder, similarity = (
        load_torchscript(model_repo / model.name / "1" / "model.pt") for model in contract.MODELS
    )
    return encoder, similarity


def build_embeddings(output_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, D) of a build's gallery and (n, D) of its test images, n at most 1,000."""
    encoder, _ = load_models(output_dir / "model_repo")
    gallery = open_gallery(output_dir / "gallery")
    images, queries = (
        torch.from_numpy(np.array(images))
        for images in (gallery.images, gallery.query_images[:1000])
    )
    return embed_images(encoder, images).numpy(), embed_images(encoder, queries).numpy()


def median_ms(search: Callable[[], object], least: int = 5, seconds: float = 1.0) -> float:
    """Median milliseconds of a call; three warm up, then `least` of them or `seconds` long."""
    for _ in range(3):
        search()
    times: list[float] = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        search()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times))


def measure(
    model_repo: Path, images: torch.Tensor, batch_sizes: list[int], seconds: float
) -> dict[int, dict]:
    """Queries per second and latency of whole searches, by batch size; `model_ms` is each model's
    own share of the mean.

    Parameters
    ----------
    images : (n, height, width) uint8, n at least the largest batch size
    seconds : for each batch size, after as long a warm-up as a fifth of it
    """
    encoder, similarity = load_models(model_repo)
    report = {}
    with torch.inference_mode():
        for size in batch_sizes:
            batches = [to_pixels(part) for part in images.split(size) if len(part) == size]
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
    parser.add_argument("--model-repo", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help=".npy, (n, height, width) uint8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = torch.from_numpy(np.load(options.images, mmap_mode="r")[:256].copy())
    print(json.dumps(measure(options.model_repo, images, options.batch_sizes, options.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
