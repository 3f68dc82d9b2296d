"""Where the time of a call goes, next to the same models in one process.

    python -m reverse_image_search.benchmark.call_parts --output-dir .

Starts a server of the local runtime with a build's models and one that computes nothing. One
client asks it, in short turns of everything; the fastest tenth of them counts, in which other
programs were not in the way.
"""

import dataclasses
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tritonclient.http import InferenceServerClient

from reverse_image_search import contract, layout
from reverse_image_search.benchmark.client_overhead import bare_infer
from reverse_image_search.benchmark.in_process import load_models
from reverse_image_search.benchmark.load_generator import query_tensors
from reverse_image_search.benchmark.measurements import describe_machine
from reverse_image_search.benchmark.servers import local_server
from reverse_image_search.command_line import make_parser, print_table
from reverse_image_search.serving.export import write_model_files
from reverse_image_search.serving.model_config import model_config

PARTS = (
    "client",
    "HTTP",
    "queue, and copies of the tensors",
    "the model's process, besides the model",
    "the model",
)
_CALLS = 5  # of each model in a turn
_NOTHING = dataclasses.replace(contract.VECTOR_SIMILARITY, name="nothing")


class Nothing(nn.Module):
    """Answers as an index does, and computes nothing."""

    ids: Tensor
    scores: Tensor

    def __init__(self, top_k: int):
        super().__init__()
        shape = contract.MAX_BATCH_SIZE, top_k
        self.register_buffer("ids", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("scores", torch.zeros(shape))

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, D) -> ids (batch, K) and scores (batch, K), all of them 0."""
        return self.ids[: embeddings.size(0)], self.scores[: embeddings.size(0)]


def main() -> None:
    """Print the parts of a call of each model: what a search in two calls takes, and in one."""
    options = make_parser(main.__doc__, turns=400).parse_args()
    parts = measure(options.output_dir, options.turns)
    print(describe_machine())
    rows = [[part, *times] for part, *times in zip(PARTS, *parts.values(), strict=True)]
    print_table(["milliseconds", *parts], [*rows, ["all", *map(sum, parts.values())]])
    encoder, index, one_call, _ = map(sum, parts.values())
    in_process = parts[contract.IMAGE_SEARCH.name][-1]
    print(f"\nOne query in process: {in_process:.2f} ms")
    for way, time_ in {"two calls": encoder + index, "one call": one_call}.items():
        print(f"One query in {way}: {time_:.2f} ms, {time_ / in_process:.2f} times as long")


def measure(output_dir: Path, turns: int) -> dict[str, list[float]]:
    """Milliseconds of `PARTS` by model, in the fastest tenth of the turns."""
    torch.set_num_threads(1)
    modules = load_models(output_dir)
    images = query_tensors(output_dir, _CALLS)[:, None]  # batches of one
    with torch.inference_mode():
        embedding = modules[0](torch.from_numpy(images[0]))
        top_k = modules[1](embedding)[0].shape[1]
    embeddings = [embedding.numpy()] * _CALLS
    ways = ((contract.MODELS, images), ([contract.IMAGE_SEARCH], images), ([_NOTHING], embeddings))
    in_process, served = [], defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        _write_nothing(Path(folder), embedding.shape[1], top_k)
        repositories = [output_dir / layout.MODEL_REPO, output_dir / layout.ENSEMBLE_REPO]
        with local_server([*repositories, Path(folder)]) as url:
            server = InferenceServerClient(url.partition("://")[2])
            for _ in range(turns):
                in_process.append(_time_in_process(modules, images))
                for models, inputs in ways:
                    for name, times in _time_calls(server, models, inputs).items():
                        served[name].append(times)
    encoder, index = _of_fastest(in_process)
    alone = dict(zip(served, (encoder, index, encoder + index, 0.0), strict=True))
    parts = {}
    for name, times_of_turns in served.items():
        latency, client, success, compute_infer = _of_fastest(times_of_turns)
        parts[name] = split_call(latency, client, success, compute_infer, alone[name])
    return parts


def split_call(
    latency: float, client: float, success: float, compute_infer: float, alone: float
) -> list[float]:
    """Split a call into `PARTS`, which add up to its `latency`; all in the same unit.

    Parameters
    ----------
    client : processor time of the client
    success, compute_infer : of Triton's statistics, from the parsed request to its answer
        (https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md)
    alone : the model in process
    """
    in_triton = success - compute_infer
    return [client, latency - client - success, in_triton, compute_infer - alone, alone]


def _time_in_process(modules: Sequence[nn.Module], images: np.ndarray) -> np.ndarray:
    """Mean milliseconds of processor time in each module."""
    seconds = np.zeros(len(modules))
    for image in images:
        tensor = torch.from_numpy(image)
        for position, module in enumerate(modules):
            start = time.thread_time()
            with torch.inference_mode():
                tensor = module(tensor)
            seconds[position] += time.thread_time() - start
    return 1e3 / len(images) * seconds


def _time_calls(
    server: InferenceServerClient,
    models: Sequence[contract.ModelSpec],
    inputs: Iterable[np.ndarray],
) -> dict[str, np.ndarray]:
    """Mean milliseconds of a call by model: latency, client, and Triton's success, compute_infer.

    The first model is asked for each of `inputs`, the others for the answer of the one before.
    """
    clocks = {model.name: np.zeros(2) for model in models}
    before = _statistics(server)
    for tensor in inputs:
        for model in models:
            start = time.perf_counter(), time.thread_time()
            tensor, *_ = bare_infer(server, model, tensor)
            clocks[model.name] += np.subtract((time.perf_counter(), time.thread_time()), start)
    after = _statistics(server)
    return {
        name: 1e3 / _CALLS * np.concatenate([clock, after[name] - before[name]])
        for name, clock in clocks.items()
    }


def _statistics(server: InferenceServerClient) -> dict[str, np.ndarray]:
    """Seconds of `success` and `compute_infer` since the server's start, by model."""
    statistics = {
        model["name"]: model["inference_stats"]
        for model in server.get_inference_statistics()["model_stats"]
    }
    return {
        name: np.array([of["success"]["ns"], of["compute_infer"]["ns"]]) / 1e9
        for name, of in statistics.items()
    }


def _of_fastest(turns: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of the fastest tenth, in which no other program was in the way."""
    ordered = sorted(turns, key=np.sum)
    return np.mean(ordered[: max(1, len(ordered) // 10)], axis=0)


def _write_nothing(repository: Path, embedding_dim: int, top_k: int) -> None:
    folder = layout.version_folder(repository, _NOTHING.name, layout.FIRST_VERSION)
    write_model_files({layout.MODEL_FILENAME: Nothing(top_k)}, folder, input_ndim=2)
    config = model_config(
        _NOTHING, embedding_dim=embedding_dim, top_k=top_k, example_dims=(embedding_dim,),
        parameters={},
    )  # fmt: skip
    layout.config_file(repository, _NOTHING.name).write_text(config)


if __name__ == "__main__":
    main()
