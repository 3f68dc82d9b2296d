import json

import numpy as np
import pytest

from reverse_image_search.benchmark.builds import print_builds
from reverse_image_search.benchmark.call_parts import PARTS, split_call
from reverse_image_search.benchmark.load_generator import SCENARIOS, query_tensors
from reverse_image_search.benchmark.report import compute_ratios, median_row
from reverse_image_search.gallery import GalleryImage, GalleryMetadata, make_thumbnail
from reverse_image_search.gallery_writer import write_gallery
from reverse_image_search.layout import gallery_file

IMAGES = np.random.default_rng(0).random((2, 3, 28, 20), np.float32)  # RGB, 0 to 1


def split_request(request: bytes) -> tuple[bytes, dict, bytes]:
    """Start line, JSON header and binary part of an inference request."""
    head, _, body = request.partition(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    assert int(fields[b"Content-Length"]) == len(body)
    size = int(fields[b"Inference-Header-Content-Length"])
    return head.split(b"\r\n")[0], json.loads(body[:size]), body[size:]


def test_a_search_in_two_calls_hands_the_embedding_on():
    scenario = SCENARIOS["two_calls"]
    embedding = np.linspace(-1, 1, 64, dtype=np.float32).tobytes()
    answer = b'{"outputs":[]}' + embedding
    head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 14\r\nContent-Length: 270\r\n"

    line, header, binary = split_request(scenario.first(IMAGES[1:]))
    assert line == b"POST /v2/models/image_encoder/infer HTTP/1.1"
    assert header["inputs"][0]["shape"] == [1, 3, 28, 20]
    assert binary == IMAGES[1].tobytes()

    line, header, binary = split_request(scenario.second(head, answer))
    assert line == b"POST /v2/models/vector_similarity/infer HTTP/1.1"
    assert header["inputs"][0]["shape"] == [1, 64]
    assert binary == embedding


@pytest.mark.parametrize("name", SCENARIOS)
def test_requests_differ_from_image_to_image(name):
    requests = {SCENARIOS[name].first(image[None]) for image in IMAGES}
    assert len(requests) == len(IMAGES)


@pytest.mark.parametrize("has_queries", [True, False])
def test_searches_with_the_queries_or_else_with_the_gallery(tmp_path, has_queries):
    """All in the size of the first, grayscale as RGB, and again from the first if they are few."""
    gray, rgb = np.full((4, 6), 51, np.uint8), np.full((8, 12, 3), (255, 0, 51), np.uint8)
    images = [
        GalleryImage(i, str(i), None, 6, 4, b"", make_thumbnail(pixels))
        for i, pixels in enumerate((gray, rgb))
    ]
    metadata = GalleryMetadata("g", "e", "Shoes", [], 28, 28, False, False)
    both = ([], images) if has_queries else (images, [])
    write_gallery(gallery_file(tmp_path), metadata, *both)

    tensors = query_tensors(tmp_path, 5)

    assert tensors.shape == (5, 3, 4, 6)
    assert np.array_equal(tensors[2:4], tensors[:2])
    assert tensors.dtype == np.float32
    assert tensors[0] == pytest.approx(0.2)
    assert tensors[1].mean(axis=(1, 2)) == pytest.approx([1, 0, 0.2])


def report(queries_per_second: float, milliseconds: float) -> dict:
    return {
        "queries_per_second": queries_per_second,
        "p50_ms": milliseconds,
        "p95_ms": milliseconds,
        "p99_ms": milliseconds,
    }


def test_a_row_holds_medians_and_spread():
    row = median_row("two calls", 8, [report(90, 3), report(100, 1), report(120, 2)])
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
    assert compute_ratios(rows) == {
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
    assert compute_ratios(rows)["backend, 1 client: milliseconds added to a call"] == 0.375


def test_builds_in_one_table(capsys):
    triton = {"triton": {"vector_similarity": {"compute_ms": 0.5}}}
    facts = {"ready_seconds": 2.0, "memory_mb": 300.0}
    print_builds({
        "machine": "a machine",
        "builds": {
            "exact": {"recalls": {20: 1.0, 100: 1.0}, **facts},
            "ivf": {"recalls": {20: 0.995}, **facts},
        },
        "rows": [
            {"name": name, "clients": clients, **report(100 * clients, clients / 2), **triton}
            for clients in (8, 1)
            for name in ("exact", "ivf")
        ],
    })  # fmt: skip

    header, _, exact, ivf = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    ]
    assert header[1:3] == ["recall@20", "recall@100"]
    assert header[-2:] == ["clients: 1", "clients: 8"]
    speed = ["2.00", "300", "0.50", "0.5 ms, 100/s", "4.0 ms, 800/s"]
    assert exact == ["exact", "1.0000", "1.0000", *speed]
    assert ivf == ["ivf", "0.9950", "", *speed]


def test_the_parts_of_a_call():
    """Of 10 ms, 1 is the client's; Triton has 7, of them 5 in the model's process."""
    parts = split_call(latency=10, client=1, success=7, compute_infer=5, alone=3)

    assert dict(zip(PARTS, parts, strict=True)) == {
        "client": 1,
        "HTTP": 2,
        "queue, and copies of the tensors": 2,
        "the model's process, besides the model": 2,
        "the model": 3,
    }
