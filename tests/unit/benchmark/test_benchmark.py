import json

import numpy as np
import pytest

from reverse_image_search import contract
from reverse_image_search.benchmark.__main__ import _median_row, _ratios
from reverse_image_search.benchmark.load_generator import SCENARIOS, TwoCalls
from reverse_image_search.serving.export import ensemble_config
from tests.unit.serving.test_model_config import parse_config

IMAGES = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)


def split_request(request: bytes) -> tuple[bytes, dict, bytes]:
    """Start line, JSON header and binary part of an inference request."""
    head, _, body = request.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert int(fields[b"Content-Length"]) == len(body)
    size = int(fields[b"Inference-Header-Content-Length"])
    return head.split(b"\r\n")[0], json.loads(body[:size]), body[size:]


def test_a_search_in_two_calls_hands_the_embedding_on():
    scenario = TwoCalls("localhost:8000", IMAGES)
    embedding = np.linspace(-1, 1, 64, dtype=np.float32).tobytes()
    answer = b'{"outputs":[]}' + embedding
    head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 14\r\nContent-Length: 270\r\n"

    line, header, binary = split_request(scenario.first_requests[1])
    assert line == b"POST /v2/models/image_encoder/infer HTTP/1.1"
    assert header["inputs"][0]["shape"] == [1, 3, 28, 28]
    assert len(binary) == 3 * 28 * 28 * 4

    line, header, binary = split_request(scenario.next_request(0, head, answer))
    assert line == b"POST /v2/models/vector_similarity/infer HTTP/1.1"
    assert header["inputs"][0]["shape"] == [1, 64]
    assert binary == embedding

    assert scenario.next_request(1, head, answer) is None


@pytest.mark.parametrize("name", SCENARIOS)
def test_requests_differ_from_image_to_image(name):
    scenario = SCENARIOS[name]("localhost:8000", IMAGES)
    assert len(set(scenario.first_requests)) == len(IMAGES)


def report(queries_per_second: float, milliseconds: float) -> dict:
    return {
        "queries_per_second": queries_per_second,
        "p50_ms": milliseconds,
        "p95_ms": milliseconds,
        "p99_ms": milliseconds,
    }


def test_a_row_holds_medians_and_spread():
    row = _median_row("two calls", 8, [report(90, 3), report(100, 1), report(120, 2)])
    assert row == {
        "name": "two calls", "clients": 8, "queries_per_second": 100,
        "p50_ms": 2, "p95_ms": 2, "p99_ms": 2, "spread": 0.3,
    }  # fmt: skip


def test_ratios_compare_with_the_limit_and_the_peers():
    rows = [
        {"name": "in-process, 1 threads, batch 1", "clients": 0, **report(500, 2)},
        {"name": "in-process, 1 threads, batch 64", "clients": 0, **report(2000, 30)},
        {"name": "two calls", "clients": 1, **report(400, 2.5)},
        {"name": "two calls", "clients": 32, **report(1200, 20)},
        {"name": "FastAPI", "clients": 32, **report(400, 80)},
    ]
    assert _ratios(rows) == {
        "two calls, 1 client: p50 over in-process": 1.25,
        "two calls: best throughput over in-process": 0.6,
        "two calls over FastAPI, 32 clients": 3.0,
    }


def test_the_backends_own_time_is_what_the_models_do_not_take():
    rows = [
        {
            "name": "in-process, 1 threads, batch 1", "clients": 0, **report(500, 2),
            "model_ms": {"image_encoder": 1.25, "vector_similarity": 0.5},
        },
        {
            "name": "two calls", "clients": 1, **report(400, 2.5),
            "triton": {
                "image_encoder": {"compute_ms": 1.5}, "vector_similarity": {"compute_ms": 1.0},
            },
        },
    ]  # fmt: skip
    assert _ratios(rows)["backend, 1 client: milliseconds added to a call"] == 0.375


def test_the_ensemble_hands_every_tensor_of_the_contract_on():
    config = parse_config(ensemble_config("abc123", 64, 20))
    assert config.platform == "ensemble"
    assert config.max_batch_size == contract.MAX_BATCH_SIZE
    encoder, similarity = config.ensemble_scheduling.step
    assert (encoder.model_name, similarity.model_name) == ("image_encoder", "vector_similarity")
    assert dict(encoder.input_map) == {"INPUT__0": "INPUT__0"}
    assert encoder.output_map["OUTPUT__0"] == similarity.input_map["INPUT__0"]
    assert dict(similarity.output_map) == {"OUTPUT__0": "OUTPUT__0", "OUTPUT__1": "OUTPUT__1"}
    assert [list(tensor.dims) for tensor in config.output] == [[20], [20]]
