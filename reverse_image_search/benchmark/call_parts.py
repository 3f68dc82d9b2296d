"""Where the time of a call goes, next to the same models in one process.

    python -m reverse_image_search.benchmark.call_parts --output-dir .

Starts a server of the local runtime with a build's models and one that computes nothing. One
client asks it, in short turns of everything; the fastest quarter of them counts, in which other
programs were not in the way.
"""

import dataclasses
import tempfile
import time
from collections.abc import Mapping, Sequence
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
_CALLS = 10  # of each model in a turn
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
    options = make_parser(main.__doc__, turns=200).parse_args()
    parts = measure(options.output_dir, options.turns)
    models = [*contract.MODELS, contract.IMAGE_SEARCH, _NOTHING]
    columns = [parts[model.name] for model in models]
    rows = zip(PARTS, *columns, strict=True)
    print(describe_machine())
    print_table(
        ["milliseconds", *(model.name for model in models)],
        [*map(list, rows), ["all", *(column.sum() for column in columns)]],
    )
    encoder, index, both, _ = columns
    two_calls, one_call, in_process = (encoder + index).sum(), both.sum(), both[-1]
    print(
        f"\nOne query: in process {in_process:.2f} ms; two calls {two_calls:.2f}, "
        f"{two_calls / in_process:.2f} times; one call {one_call:.2f}, "
        f"{one_call / in_process:.2f} times"
    )


def measure(output_dir: Path, turns: int) -> dict[str, np.ndarray]:
    """Mean milliseconds of `PARTS` by model, in the fastest quarter of the turns."""
    torch.set_num_threads(1)
    modules = load_models(output_dir)
    images = query_tensors(output_dir, _CALLS)[:, None]  # batches of one
    _, (embedding, ids) = _in_process(modules, images[:1])
    embeddings = np.repeat(embedding.numpy()[None], _CALLS, axis=0)
    with tempfile.TemporaryDirectory() as folder:
        _write_nothing(Path(folder), embedding.shape[1], ids.shape[1])
        repositories = [output_dir / layout.MODEL_REPO, output_dir / layout.ENSEMBLE_REPO]
        with local_server([*repositories, Path(folder)]) as url:
            server = InferenceServerClient(url.partition("://")[2])

            def turn() -> dict[str, np.ndarray]:
                alone, _ = _in_process(modules, images)
                return (
                    _ask(server, contract.MODELS, images, alone)
                    | _ask(server, [contract.IMAGE_SEARCH], images, [sum(alone)])
                    | _ask(server, [_NOTHING], embeddings, [0.0])
                )

            turn()  # warms up
            parts = [turn() for _ in range(turns)]
    return {name: _of_fastest(np.stack([part[name] for part in parts])) for name in parts[0]}


def split_call(
    latency: float, client: float, triton: Mapping[str, float], alone: float
) -> list[float]:
    """Split a call into `PARTS`, which add up to its `latency`; all in the same unit.

    Parameters
    ----------
    client : processor time of the client
    triton : of Triton's statistics, which count from the parsed request to the answer
        (https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md)
    alone : the model in process
    """
    computed = triton["compute_infer"]
    return [
        client,
        latency - client - triton["success"],
        triton["success"] - computed,
        computed - alone,
        alone,
    ]


def _in_process(
    modules: Sequence[nn.Module], images: np.ndarray
) -> tuple[list[float], list[Tensor]]:
    """Seconds of processor time in each module for all `images`, and the last first outputs."""
    seconds = [0.0] * len(modules)
    outputs: list[Tensor] = []
    for image in images:
        tensor, outputs = torch.from_numpy(image), []
        for position, module in enumerate(modules):
            start = time.thread_time()
            with torch.inference_mode():
                answer = module(tensor)
            seconds[position] += time.thread_time() - start
            tensor = answer if isinstance(answer, Tensor) else answer[0]
            outputs.append(tensor)
    return seconds, outputs


def _ask(
    server: InferenceServerClient,
    models: Sequence[contract.ModelSpec],
    inputs: np.ndarray,
    alone: Sequence[float],
) -> dict[str, np.ndarray]:
    """Mean milliseconds of `PARTS` by model; each model but the first gets the one's answer before.

    `alone` : seconds that each model takes in process for all `inputs`
    """
    clocks = np.zeros((len(models), 2))  # seconds: latency, and the client's processor time
    before = _statistics(server)
    for tensor in inputs:
        for clock, model in zip(clocks, models, strict=True):
            start = time.perf_counter(), time.thread_time()
            tensor, *_ = bare_infer(server, model, tensor)
            clock += np.subtract((time.perf_counter(), time.thread_time()), start)
    after = _statistics(server)
    parts = {}
    for (latency, client), model, seconds in zip(clocks, models, alone, strict=True):
        statistics = after[model.name]
        triton = {key: statistics[key] - before[model.name][key] for key in statistics}
        split = split_call(latency, client, triton, seconds)
        parts[model.name] = 1e3 / len(inputs) * np.array(split)
    return parts


def _of_fastest(turns: np.ndarray) -> np.ndarray:
    """Mean of the fastest turns: (turns, parts) -> (parts,)."""
    order = turns.sum(axis=1).argsort()
    return turns[order[: max(1, len(order) // 4)]].mean(axis=0)


def _statistics(server: InferenceServerClient) -> dict[str, dict[str, float]]:
    """Seconds since the start of the server, by model and by what they were spent on."""
    models = server.get_inference_statistics()["model_stats"]
    return {
        model["name"]: {key: of["ns"] / 1e9 for key, of in model["inference_stats"].items()}
        for model in models
    }


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
