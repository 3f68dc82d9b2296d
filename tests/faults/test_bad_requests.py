"""Requests that no client sends: each is told why, or the server is back within 15 seconds."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.http import InferenceServerClient, InferInput

from reverse_image_search import contract
from reverse_image_search.client import Client, Neighbors
from tests.faults import bad_requests
from tests.faults.bad_requests import KILLERS, GrpcRequest, HttpRequest
from tests.faults.conftest import (
    is_right,
    model_processes_of,
    processes_of,
    ready_again,
    wait_for_right_answer,
)
from tests.running import Triton

SEED = int(os.environ.get("FAULTS_SEED", "7"))
SLOWEST = 1.0  # seconds an error may take
ATTEMPTS = 3  # for an answer that took longer: the machine may have been busy
CHECK_EVERY = 50  # bad requests between two good ones
# MB that may be kept of a second round of bad requests. The models' processes keep none. Triton's
# allocator keeps some: over 50 rounds memory rose by 390 MB, up and down by as much as 90 a round;
# by 140 with MALLOC_MMAP_THRESHOLD_ set.
MOST_GROWTH_OF_MODELS, MOST_GROWTH_OF_SERVER = 8, 256


@pytest.fixture(scope="module")
def embedding_dim(victim: Triton) -> int:
    (inputs,) = Client(victim.url).model_metadata(contract.VECTOR_SIMILARITY.name)["inputs"]
    return inputs["shape"][-1]


def send(port: int, request: HttpRequest, timeout: float = 20) -> tuple[int, bytes]:
    """Status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(request.method, request.path, request.body, request.headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def check_http(port: int, request: HttpRequest) -> None:
    for _ in range(ATTEMPTS):
        start = time.monotonic()
        status, body = send(port, request)
        seconds = time.monotonic() - start
        if seconds <= SLOWEST:
            break
    assert seconds <= SLOWEST, f"took {seconds:.1f} s"
    if status == 200 and not request.must_fail:
        return
    assert status >= 400, f"accepted: {body[:200]!r}"
    assert json.loads(body)["error"].strip()


def check_grpc(channel: grpc.Channel, request: GrpcRequest) -> None:
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    for _ in range(ATTEMPTS):
        start = time.monotonic()
        error = None
        try:
            infer(request.body, timeout=20)
        except grpc.RpcError as raised:
            error = raised
        seconds = time.monotonic() - start
        if seconds <= SLOWEST:
            break
    assert seconds <= SLOWEST, f"took {seconds:.1f} s"
    if error is None:
        assert not request.must_fail, "accepted"
        return
    assert error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert error.details().strip()


@pytest.fixture
def channel(victim: Triton):
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{victim.grpc_port}", options) as channel:
        yield channel


def memory(pids: Iterable[int]) -> int:
    """Megabytes of anonymous memory of these processes."""
    statuses = (Path(f"/proc/{pid}/status").read_text() for pid in pids)
    return sum(int(status.partition("RssAnon:")[2].split()[0]) for status in statuses) // 1024


def test_each_bad_request_is_told_why(
    victim: Triton, channel, embedding_dim: int, known_queries, known_answer: Neighbors, tally
):
    client = Client(victim.url, timeout=10)
    over_http = list(bad_requests.http_requests(SEED, embedding_dim))
    over_grpc = list(bad_requests.grpc_requests(SEED, embedding_dim))
    assert len(over_http) + len(over_grpc) >= 500
    pid = victim.server_pid

    def try_all(http_row, grpc_row) -> None:
        for number, request in enumerate(over_http):
            with http_row.case(request.name[:100]):
                check_http(victim.http_port, request)
                if number % CHECK_EVERY == 0:
                    assert is_right(client.search(known_queries), known_answer)
        for number, request in enumerate(over_grpc):
            with grpc_row.case(request.name[:100]):
                check_grpc(channel, request)
                if number % CHECK_EVERY == 0:
                    assert is_right(client.search(known_queries), known_answer)

    try_all(tally("bad requests over HTTP"), tally("bad requests over gRPC"))
    models = model_processes_of(victim).values()
    before, server_before = memory(models), memory([pid])
    again = tally("the same once more")
    try_all(again, again)

    growth, server_growth = memory(models) - before, memory([pid]) - server_before
    again.note = (
        f"models {before} MB, then {growth:+} MB; server {server_before} MB, then "
        f"{server_growth:+} MB"
    )
    assert growth <= MOST_GROWTH_OF_MODELS
    assert server_growth <= MOST_GROWTH_OF_SERVER
    assert victim.server_pid == pid, "a bad request killed the server"
    assert is_right(client.search(known_queries), known_answer)


def _rest_of_request(length: int) -> bytes:
    return (
        b"POST /v2/models/image_encoder/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{"
        % length
    )


RAW_BYTES = {
    "nothing": b"",
    "half a line": b"GET /v2/hea",
    "half the headers": b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n",
    "half a body": _rest_of_request(1000),
    "a body of 2**62 bytes": _rest_of_request(2**62),
    "a body of -1 bytes": _rest_of_request(-1),
    "zeros": bytes(100_000),
    "a TLS hello": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "an HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "a line of a megabyte": b"GET /" + b"x" * 2**20 + b" HTTP/1.1\r\n\r\n",
    "a header of a megabyte": b"GET / HTTP/1.1\r\nX: " + b"x" * 2**20 + b"\r\n\r\n",
    "100,000 headers": b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * 100_000 + b"\r\n",
    "a broken chunk": b"POST /v2/models/image_encoder/infer HTTP/1.1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
    "two lengths": b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 99\r\n\r\n{}",
    "1,000 requests at once": b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 1000,
}


@pytest.mark.parametrize("protocol", ["HTTP", "gRPC"])
def test_bytes_that_are_no_request(victim, protocol, known_queries, known_answer, tally):
    """Sent, and the connection then cut; 50 more stay open and silent meanwhile."""
    client = Client(victim.url, timeout=10)
    port = victim.http_port if protocol == "HTTP" else victim.grpc_port
    row = tally(f"bytes that are no request, to the {protocol} port")
    pid = victim.server_pid
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(50)]
    for connection in silent:
        connection.sendall(b"POST /v2/mod")
    for name, sent in RAW_BYTES.items():
        with row.case(name):
            with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection:
                try:
                    connection.sendall(sent)
                    connection.recv(1000)
                except OSError:
                    pass  # no answer, or cut off: both are fine
            assert is_right(client.search(known_queries), known_answer)
    for connection in silent:
        connection.close()
    assert victim.server_pid == pid


def test_requests_that_kill_are_survived(victim, known_queries, known_answer, tally):
    """The server or a model's process dies of these, and is there again, with right answers."""
    client = Client(victim.url, timeout=5)
    row = tally("requests known to kill Triton 2.51")
    slowest = 0.0
    for request in KILLERS:
        with row.case(request.name):
            before = processes_of(victim)
            start = time.monotonic()
            try:
                status, body = send(victim.http_port, request)
            except (OSError, http.client.HTTPException):
                pass  # the connection died with the server
            else:
                assert status >= 400
                assert json.loads(body)["error"].strip()
            # The old server may answer once more before the supervisor ends it.
            while before & processes_of(victim):
                assert time.monotonic() - start < ready_again(), "nothing died: no killer any more?"
                time.sleep(0.05)
            wait_for_right_answer(client, known_queries, known_answer)
            slowest = max(slowest, time.monotonic() - start)
    row.note = f"right answers again after at most {slowest:.1f} s"


def infer(url: str, model: contract.ModelSpec, tensor: np.ndarray) -> list[np.ndarray]:
    """Outputs of a model, for values that our own client refuses to send."""
    (spec,) = model.inputs
    infer_input = InferInput(spec.name, tensor.shape, spec.datatype)
    infer_input.set_data_from_numpy(tensor.astype(np.float32))
    with InferenceServerClient(url.removeprefix("http://")) as server:
        result = server.infer(model.name, [infer_input])
    return [result.as_numpy(output.name) for output in model.outputs]


class TestValuesOutOfRange:
    """What doc/faults.md promises about NaN, infinities and vectors without a direction."""

    def embed(self, victim: Triton, value: float) -> np.ndarray:
        """Embedding of an image whose pixels all have this value."""
        ((embedding,),) = infer(victim.url, contract.IMAGE_ENCODER, np.full((1, 3, 8, 8), value))
        return embedding

    def test_nan_and_negative_pixels_are_black(self, victim):
        black = self.embed(victim, 0)
        assert np.linalg.norm(black) == pytest.approx(1, abs=1e-5)
        for value in (np.nan, -np.inf, -1):
            np.testing.assert_allclose(self.embed(victim, value), black, atol=1e-6)

    def test_pixels_above_1_are_white(self, victim):
        white = self.embed(victim, 1)
        for value in (np.inf, 255, np.finfo(np.float32).max):
            np.testing.assert_allclose(self.embed(victim, value), white, atol=1e-6)

    @pytest.mark.parametrize("value", [0, np.nan, np.inf, -np.inf])
    def test_an_embedding_without_a_direction_is_0_to_everything(
        self, victim, embedding_dim, value
    ):
        ids, scores = infer(
            victim.url, contract.VECTOR_SIMILARITY, np.full((1, embedding_dim), value)
        )

        np.testing.assert_array_equal(scores, 0)
        assert (np.diff(ids[0]) > 0).all(), "ties by rising id"

    def test_a_value_that_is_not_finite_leaves_the_others_as_they_are(self, victim, known_queries):
        client = Client(victim.url)
        embeddings = client.embed(known_queries[:1]).copy()
        embeddings[0, 3] = 0
        expected = client.find_similar(embeddings)
        embeddings[0, 3] = np.nan
        ids, _ = infer(victim.url, contract.VECTOR_SIMILARITY, embeddings)

        np.testing.assert_array_equal(ids, expected.ids)

    def test_a_bad_query_does_not_change_its_neighbors_in_the_batch(
        self, victim, known_queries, known_answer
    ):
        """Triton puts requests into one batch; here they come as one."""
        embeddings = Client(victim.url).embed(known_queries)
        embeddings[1] = np.nan
        ids, scores = infer(victim.url, contract.VECTOR_SIMILARITY, embeddings)

        np.testing.assert_array_equal(ids[0], known_answer.ids[0])
        np.testing.assert_allclose(scores[1], 0)


def test_grpc_gives_the_same_answer(victim, channel, embedding_dim):
    """The oracle of the gRPC requests: the good one that they all start from is answered."""
    (request, *_) = bad_requests.grpc_requests(SEED, embedding_dim)
    message = service_pb2.ModelInferRequest.FromString(request.body)
    message.model_name = contract.IMAGE_ENCODER.name
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    answer = service_pb2.ModelInferResponse.FromString(infer(message.SerializeToString()))

    embedding = np.frombuffer(answer.raw_output_contents[0], np.float32)
    expected = Client(victim.url).embed(np.zeros((1, 3, 4, 5), np.float32))[0]
    np.testing.assert_allclose(embedding, expected, atol=1e-6)
