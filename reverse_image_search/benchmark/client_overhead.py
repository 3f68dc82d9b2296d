"""What the Python client costs: its searches against bare `tritonclient.http`, interleaved.

    python -m reverse_image_search.benchmark.client_overhead --url http://127.0.0.1:8000

One client in one process; each query is two calls, `image_encoder` and `vector_similarity`.
"""

import time

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

from reverse_image_search import contract
from reverse_image_search.client import Client
from reverse_image_search.command_line import make_parser


def bare_search(server: InferenceServerClient, tensor: np.ndarray) -> np.ndarray:
    """Ids of the nearest gallery images, as tritonclient's documentation asks for them."""
    for model in contract.MODELS:
        tensor, *_ = bare_infer(server, model, tensor)
    return tensor


def bare_infer(
    server: InferenceServerClient, model: contract.ModelSpec, tensor: np.ndarray
) -> list[np.ndarray]:
    """Outputs of a model."""
    (spec,) = model.inputs
    infer_input = InferInput(spec.name, tensor.shape, spec.datatype)
    infer_input.set_data_from_numpy(tensor)
    result = server.infer(model.name, [infer_input])
    return [result.as_numpy(output.name) for output in model.outputs]


def measure(url: str, queries: int) -> tuple[float, float]:
    """Median milliseconds of one query: (bare tritonclient, our client)."""
    client = Client(url)
    server = InferenceServerClient(client.url.partition("://")[2])
    images = np.random.default_rng(0).random((queries, 1, 3, 28, 28), np.float32)
    milliseconds = np.empty((queries, 2))
    for query, image in enumerate(images):
        ids: dict[int, np.ndarray] = {}
        for which in (0, 1) if query % 2 else (1, 0):  # neither always first
            start = time.perf_counter()
            ids[which] = client.search([image[0]]).ids if which else bare_search(server, image)
            milliseconds[query, which] = 1e3 * (time.perf_counter() - start)
        np.testing.assert_array_equal(ids[0], ids[1])
    bare, ours = np.median(milliseconds[queries // 10 :], axis=0)  # without the warm-up
    return bare, ours


def main() -> None:
    """Print both medians and their ratio."""
    options = make_parser(main.__doc__, queries=2000).parse_args()
    bare, ours = measure(options.url, options.queries)
    print(f"tritonclient.http {bare:.2f} ms, our client {ours:.2f} ms: {ours / bare:.3f} times")


if __name__ == "__main__":
    main()
