"""Requests with a batch of 0 beside good ones: nobody else's answer changes.

Triton's core drops a batch dimension of 0, or of a multiple of 2**32: an image of shape
(0, 3, height, width) arrives as (3, height, width). Without the `reshape` of our configurations it
counts as three images, and all that was batched with it fails or gets the answers of others.
"""

import http.client
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from reverse_image_search import contract
from reverse_image_search.client import Client, TritonError
from tests.running import Triton, start_server, stop_server

GOOD, BAD = 1000, 200
GOOD_THREADS, BAD_THREADS = 8, 4
BATCHES = (0, 2**32, 3 * 2**32)
HEADER_LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def server(small_build):
    """Both models and the ensemble."""
    server = start_server(small_build, "--ensemble")
    yield server
    stop_server(server)


def send_batch(server: Triton, model: contract.ModelSpec, batch: int, tensor: np.ndarray) -> int:
    """Status of the answer to a request that says `batch` and brings one image or embedding."""
    (spec,) = model.inputs
    shape = [batch, *tensor.shape]
    inputs = [{"name": spec.name, "datatype": spec.datatype, "shape": shape,
               "parameters": {"binary_data_size": tensor.nbytes}}]  # fmt: skip
    header = json.dumps({"inputs": inputs}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    try:
        connection.request(
            "POST",
            f"/v2/models/{model.name}/infer",
            header + tensor.tobytes(),
            {HEADER_LENGTH: str(len(header))},
        )
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@pytest.mark.parametrize(
    "model", [*contract.MODELS, contract.IMAGE_SEARCH], ids=lambda model: model.name
)
def test_good_requests_beside_them_are_answered_right(server, known_queries, model, figure):
    client = Client(server.url, timeout=60, one_call=model is contract.IMAGE_SEARCH)
    images = [image[None] for image in known_queries]
    embeddings = [client.embed(image) for image in images]
    pid = server.server_pid

    def ask(which: int) -> np.ndarray:
        if model is contract.IMAGE_ENCODER:
            return client.embed(images[which])
        if model is contract.VECTOR_SIMILARITY:
            return client.find_similar(embeddings[which]).scores
        return client.search(images[which]).scores

    expected = [ask(which) for which in range(len(images))]
    outcomes: Counter[str] = Counter()
    errors: list[str] = []
    bad_are_sent = threading.Event()
    left = threading.BoundedSemaphore(GOOD)

    def ask_often(thread: int) -> None:
        asked = 0
        while left.acquire(blocking=False) or not bad_are_sent.is_set():
            which = (thread + asked) % len(images)
            asked += 1
            try:
                answer = ask(which)
            except TritonError as error:
                outcomes["failed"] += 1
                errors.append(str(error))
            else:
                right = answer.shape == expected[which].shape and np.allclose(
                    answer, expected[which], rtol=0, atol=1e-5
                )
                outcomes["right" if right else "wrong"] += 1

    pixels = np.full((3, 28, 28), 0.5, np.float32)
    tensor = embeddings[0][0] if model is contract.VECTOR_SIMILARITY else pixels
    with ThreadPoolExecutor(GOOD_THREADS) as good, ThreadPoolExecutor(BAD_THREADS) as bad:
        asking = [good.submit(ask_often, thread) for thread in range(GOOD_THREADS)]
        statuses = Counter(
            bad.map(lambda i: send_batch(server, model, BATCHES[i % 3], tensor), range(BAD))
        )
        bad_are_sent.set()
        for each in asking:
            each.result()

    figure(f"{model.name}: {dict(outcomes)} beside {BAD} of batch 0, which got {dict(statuses)}")
    assert set(outcomes) == {"right"}, errors[:3]
    assert outcomes["right"] >= GOOD
    assert server.server_pid == pid
