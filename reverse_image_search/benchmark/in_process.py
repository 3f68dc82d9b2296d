"""The machine's limit: the two served TorchScript files called directly, in one process."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from reverse_image_search import contract
from reverse_image_search.benchmark.load_generator import query_tensors
from reverse_image_search.layout import MODEL_REPO, model_file
from reverse_image_search.serving.export import load_torchscript


def load_models(output_dir: Path) -> list[torch.jit.ScriptModule]:
    """The image encoder and the vector similarity of a build."""
    repository = output_dir / MODEL_REPO
    return [load_torchscript(model_file(repository, model.name)) for model in contract.MODELS]


def measure_in_process(
    output_dir: Path, threads: int, batch_sizes: Sequence[int], seconds: float
) -> dict[int, dict]:
    """Queries per second and latency of whole searches, by batch size; `model_ms` is each model's
    own share of the mean. Each batch size takes `seconds`, after a warm-up of a fifth of it, or one
    call if that takes longer.
    """
    torch.set_num_threads(threads)
    encoder, similarity = load_models(output_dir)
    images = torch.from_numpy(query_tensors(output_dir, 256))
    report = {}
    for size in batch_sizes:
        batches = [part for part in images.split(size) if len(part) == size]
        times: list[tuple[float, float]] = []  # seconds in each model
        begin = time.perf_counter() + seconds / 5
        with torch.inference_mode():
            while (start := time.perf_counter()) < begin + seconds or not times:
                embeddings = encoder(batches[len(times) % len(batches)])
                between = time.perf_counter()
                similarity(embeddings)
                if start >= begin:
                    times.append((between - start, time.perf_counter() - between))
        milliseconds = 1e3 * np.array(times)  # (searches, 2)
        latencies = milliseconds.sum(axis=1)
        names = [model.name for model in contract.MODELS]
        report[size] = {
            "queries_per_second": 1e3 * size / latencies.mean(),
            "model_ms": dict(zip(names, milliseconds.mean(axis=0), strict=True)),
            **{f"p{p}_ms": np.percentile(latencies, p) for p in (50, 95, 99)},
        }
    return report
