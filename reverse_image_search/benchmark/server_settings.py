"""The same models under other settings of Triton: what instances, threads and waiting change.

    python -m reverse_image_search.benchmark.server_settings --output-dir .

Each setting gets a model repository and a server of its own, in the local runtime. All settings
are measured `--repeats` times in turn, so that a noisy minute does not affect one alone.
"""

import itertools
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from reverse_image_search import contract
from reverse_image_search.benchmark.in_process import load_models
from reverse_image_search.benchmark.load_generator import query_tensors
from reverse_image_search.benchmark.measurements import describe_machine, measure_load
from reverse_image_search.benchmark.servers import local_server
from reverse_image_search.command_line import make_parser, print_table
from reverse_image_search.layout import ENSEMBLE_REPO, MODEL_REPO, config_file, version_folder
from reverse_image_search.serving.model_config import ServerSettings, model_config

_RUNS = [("two_calls", 1), ("two_calls", 32), ("two_calls", 64), ("one_call", 1), ("one_call", 64)]
_DEFAULT, _TWO_INSTANCES = ServerSettings(), ServerSettings(instance_count=2)
_TWO_THREADS = ServerSettings(intra_op_threads=2)
SETTINGS = {  # name: settings of image_encoder and of vector_similarity
    "defaults": (_DEFAULT, _DEFAULT),
    "2 encoders": (_TWO_INSTANCES, _DEFAULT),
    "2 similarities": (_DEFAULT, _TWO_INSTANCES),
    "2 of both": (_TWO_INSTANCES, _TWO_INSTANCES),
    "2 threads each": (_TWO_THREADS, _TWO_THREADS),
    "2 threads of the encoder": (_TWO_THREADS, _DEFAULT),
    "wait 0.5 ms for a batch": (ServerSettings(max_queue_delay=500),) * 2,
    "no batching": (ServerSettings(dynamic_batching=False),) * 2,
}


def main() -> None:
    """Print a row per setting: median latency of one client, median throughput of more."""
    options = make_parser(main.__doc__, seconds=3.0, repeats=3).parse_args()
    output_dir = options.output_dir
    measured = np.empty((options.repeats, len(SETTINGS), len(_RUNS)))
    for repeat, (row, name) in itertools.product(range(options.repeats), enumerate(SETTINGS)):
        print(f"repeat {repeat + 1}: {name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            repositories = _copy_repositories(output_dir, Path(folder), SETTINGS[name])
            with local_server(repositories) as url:
                for column, (scenario, clients) in enumerate(_RUNS):
                    load = measure_load(url, scenario, clients, output_dir, options.seconds)
                    figure = "p50_ms" if clients == 1 else "queries_per_second"
                    measured[repeat, row, column] = load[figure]
    print(describe_machine())
    columns = [f"{way}, {clients}: {'ms' if clients == 1 else '/s'}" for way, clients in _RUNS]
    medians = zip(SETTINGS, np.median(measured, axis=0), strict=True)
    print_table(["setting", *columns], [[name, *values] for name, values in medians])


def _copy_repositories(
    output_dir: Path, folder: Path, settings: tuple[ServerSettings, ServerSettings]
) -> list[Path]:
    """A build's two model repositories, its models under other settings."""
    repositories = [folder / MODEL_REPO, folder / ENSEMBLE_REPO]
    shutil.copytree(output_dir / ENSEMBLE_REPO, repositories[1])
    for model in contract.MODELS:
        served = version_folder(output_dir / MODEL_REPO, model.name)
        shutil.copytree(served, version_folder(repositories[0], model.name))
    encoder, similarity = load_models(output_dir)
    images = torch.from_numpy(query_tensors(output_dir, 1))
    with torch.inference_mode():
        embeddings = encoder(images)
        ids, _ = similarity(embeddings)
    examples = (images, embeddings)
    for model, example, of_model in zip(contract.MODELS, examples, settings, strict=True):
        config = model_config(
            model, embedding_dim=embeddings.shape[1], top_k=ids.shape[1],
            example_dims=tuple(example.shape[1:]), parameters={}, settings=of_model,
        )  # fmt: skip
        config_file(repositories[0], model.name).write_text(config)
    return repositories


if __name__ == "__main__":
    main()
