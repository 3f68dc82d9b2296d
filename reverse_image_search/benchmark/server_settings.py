"""The same models under other settings of Triton: what instances, threads and waiting change.

    python -m reverse_image_search.benchmark.server_settings --output-dir .

Each setting gets a model repository and a server of its own, in the local runtime. All settings
are measured `--repeats` times in turn, so that a noisy minute does not affect one alone.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from reverse_image_search import contract
from reverse_image_search.benchmark.in_process import load_models
from reverse_image_search.benchmark.measurements import describe_machine, measure_load
from reverse_image_search.benchmark.servers import local_server
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import ENSEMBLE_REPO, MODEL_REPO, config_file, gallery_file
from reverse_image_search.serving.model_config import ServerSettings, model_config

_RUNS = [("two_calls", 1), ("two_calls", 32), ("two_calls", 64), ("one_call", 1), ("one_call", 64)]

_AS_BUILT, _TWO_INSTANCES = ServerSettings(), ServerSettings(instance_count=2)

SETTINGS = {  # name: settings of image_encoder and of vector_similarity
    "as built": (_AS_BUILT, _AS_BUILT),
    "2 encoders": (_TWO_INSTANCES, _AS_BUILT),
    "2 similarities": (_AS_BUILT, _TWO_INSTANCES),
    "2 of both": (_TWO_INSTANCES, _TWO_INSTANCES),
    "2 threads each": (ServerSettings(intra_op_threads=2),) * 2,
    "wait 0.5 ms for a batch": (ServerSettings(max_queue_delay=500),) * 2,
    "no batching": (ServerSettings(dynamic_batching=False),) * 2,
}


def main() -> int:
    """Print a row per setting."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="of a build")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    reports: dict[tuple[str, str, int], list[dict]] = {}
    for repeat in range(options.repeats):
        for name, settings in SETTINGS.items():
            print(f"repeat {repeat + 1}: {name} ...", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                repositories = _copy_repositories(options.output_dir, Path(folder), settings)
                with local_server(repositories) as url:
                    for scenario, clients in _RUNS:
                        report = measure_load(
                            url, scenario, clients, options.output_dir, options.seconds
                        )
                        reports.setdefault((name, scenario, clients), []).append(report)
    print(f"{describe_machine()}\n")
    columns = [f"{scenario.replace('_', ' ')}, {clients}" for scenario, clients in _RUNS]
    print(f"| setting | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for name in SETTINGS:
        cells = [_cell(reports[name, *run], run[1]) for run in _RUNS]
        print(f"| {name} | {' | '.join(cells)} |")
    return 0


def _copy_repositories(
    output_dir: Path, folder: Path, settings: tuple[ServerSettings, ServerSettings]
) -> list[Path]:
    model_repo, ensemble_repo = (
        shutil.copytree(output_dir / name, folder / name) for name in (MODEL_REPO, ENSEMBLE_REPO)
    )
    metadata = Gallery(gallery_file(output_dir)).metadata
    example = torch.zeros(1, 3, metadata.encoder_height, metadata.encoder_width)
    encoder, similarity = load_models(output_dir)
    with torch.inference_mode():
        embedding = encoder(example)
        ids, _ = similarity(embedding)
    for model, inputs, of_model in zip(
        contract.MODELS, (example, embedding), settings, strict=True
    ):
        config = model_config(
            model,
            embedding_dim=embedding.shape[1],
            top_k=ids.shape[1],
            example_dims=tuple(inputs.shape[1:]),
            parameters={},
            settings=of_model,
        )
        config_file(model_repo, model.name).write_text(config)
    return [model_repo, ensemble_repo]


def _cell(reports: list[dict], clients: int) -> str:
    """Median latency of one client, or median throughput of more."""
    if clients == 1:
        return f"{statistics.median(report['p50_ms'] for report in reports):.1f} ms"
    return f"{statistics.median(report['queries_per_second'] for report in reports):.0f}/s"


if __name__ == "__main__":
    sys.exit(main())
