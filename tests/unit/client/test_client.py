"""The client alone: pixels, shapes, and servers that misbehave. Answers: tests/integration."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.client.client import (
    MAX_SIDE,
    Client,
    RequestRejectedError,
    ServerNotReadyError,
    ServerTimeoutError,
    ServerUnreachableError,
    TritonError,
    to_tensor,
)

ONE_IMAGE = np.zeros((1, 28, 28), np.uint8)


def test_grey_pixels_become_three_equal_channels_from_0_to_1():
    tensor = to_tensor(np.array([[0, 255, 51]], np.uint8))

    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor, [[[0, 1, 0.2]]] * 3, rtol=1e-6)


def test_colours_keep_their_order():
    orange = np.array([[[255, 102, 0]]], np.uint8)

    np.testing.assert_allclose(to_tensor(orange)[:, 0, 0], [1, 0.4, 0], rtol=1e-6)


def test_pillow_images_and_arrays_are_the_same_pixels():
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)

    np.testing.assert_array_equal(to_tensor(Image.fromarray(pixels)), to_tensor(pixels))
    np.testing.assert_array_equal(
        to_tensor(Image.fromarray(pixels[..., 0])), to_tensor(pixels[..., 0])
    )


def test_float_images_pass_as_they_are():
    image = np.random.default_rng(0).random((3, 5, 4), np.float32)

    np.testing.assert_array_equal(to_tensor(image), image)


def test_photos_are_shrunk_before_they_travel():
    tensor = to_tensor(Image.new("RGB", (4 * MAX_SIDE, 2 * MAX_SIDE), (255, 0, 0)))

    assert tensor.shape == (3, MAX_SIDE // 2, MAX_SIDE)
    assert tensor[0].min() == 1
    assert tensor[1:].max() == 0


@pytest.mark.parametrize(
    ("image", "error", "expected"),
    [
        (np.zeros((28, 28)), TypeError, "Pillow image, uint8 or float32, got float64"),
        (np.zeros((28, 28), np.int64), TypeError, "got int64"),
        (np.zeros((28, 28, 4), np.uint8), ValueError, r"\(height, width\[, 3\]\), got \(28, 28, 4"),
        (np.zeros(28, np.uint8), ValueError, r"\(height, width\[, 3\]\), got \(28,\)"),
        (np.zeros((28, 28), np.float32), ValueError, r"\(3, height, width\), got \(28, 28\)"),
        (np.zeros((28, 28, 3), np.float32), ValueError, r"\(3, height, width\), got \(28, 28, 3"),
        (np.zeros((0, 28), np.uint8), ValueError, r"must have pixels, got shape \(0, 28\)"),
        ("boot.png", TypeError, "Pillow image, uint8 or float32"),
    ],
)
def test_wrong_images_are_told_the_right_shape(image, error, expected):
    with pytest.raises(error, match=expected):
        to_tensor(image)


@pytest.mark.parametrize("shape", [(128,), (0, 128), (1, 1, 128)])
def test_wrong_embeddings_are_told_the_right_shape(shape):
    with pytest.raises(ValueError, match=r"must have shape \(n, D\), got \("):
        Client().find_similar(np.zeros(shape, np.float32))


def test_no_images_are_refused_before_anything_is_sent():
    with pytest.raises(ValueError, match="no images"):
        Client().embed([])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("localhost:9000", "http://localhost:9000"),
        ("http://localhost:9000/", "http://localhost:9000"),
        ("https://search.example", "https://search.example"),
    ],
)
def test_address_may_be_short(url, expected):
    assert Client(url).url == expected


def test_unreachable_server_names_the_address_and_the_start_command(free_port):
    port = free_port()

    with pytest.raises(ServerUnreachableError, match=f"127.0.0.1:{port}.*start_inference_server"):
        Client(f"127.0.0.1:{port}").embed(ONE_IMAGE)
    assert not Client(f"127.0.0.1:{port}").is_ready()


def test_unknown_host_is_unreachable():
    with pytest.raises(ServerUnreachableError, match=r"no-such-host\.invalid"):
        Client("http://no-such-host.invalid:8000", timeout=5).server_metadata()


def test_a_server_that_never_answers_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.5)
        start = time.monotonic()

        with pytest.raises(ServerTimeoutError, match=r"did not answer within 0\.5 s"):
            client.embed(ONE_IMAGE)
        assert time.monotonic() - start < 30
        assert not client.is_ready()


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], Client]]:
    """``answering(status, body)``: a client of an HTTP server that gives this answer to all."""
    servers = []

    def start(status: int, body: bytes, headers: dict[str, str] | None = None) -> Client:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                for name, value in ({"Content-Length": len(body)} | (headers or {})).items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return Client(f"127.0.0.1:{servers[-1].server_port}", timeout=30)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (400, b'{"error": "unexpected shape"}', RequestRejectedError, "rejected.*unexpected shape"),
        (500, b"<html>proxy error</html>", RequestRejectedError, "<html>proxy error"),
        (500, b"", RequestRejectedError, "rejected"),
        (500, b'["error"]', RequestRejectedError, "rejected"),
        (503, b"", ServerNotReadyError, "build_models.sh.*start_inference_server"),
        (
            400,
            b'{"error": "Request for unknown model: \'image_encoder\' is not found"}',
            ServerNotReadyError,
            "does not serve the models",
        ),
    ],
)
def test_error_answers_say_what_happened(answering, status, body, error, message):
    client = answering(status, body)

    with pytest.raises(error, match=message):
        client.embed(ONE_IMAGE)
    assert not client.is_ready()


def binary_answer(**outputs: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an answer in the binary form of the inference protocol."""
    header = json.dumps(
        {
            "model_name": "image_encoder",
            "outputs": [
                {
                    "name": name,
                    "datatype": "FP32",
                    "shape": list(array.shape),
                    "parameters": {"binary_data_size": array.nbytes},
                }
                for name, array in outputs.items()
            ],
        }
    ).encode()
    body = header + b"".join(array.tobytes() for array in outputs.values())
    return body, {"Inference-Header-Content-Length": str(len(header))}


def test_a_binary_answer_is_read(answering):
    embeddings = np.array([[0.6, 0.8]], np.float32)

    answer = answering(200, *binary_answer(OUTPUT__0=embeddings)).embed(ONE_IMAGE)

    np.testing.assert_array_equal(answer, embeddings)


def test_an_answer_of_another_batch_size_is_refused(answering):
    client = answering(200, *binary_answer(OUTPUT__0=np.zeros((3, 2), np.float32)))

    with pytest.raises(RequestRejectedError, match=r"\(3, 2\) for a batch of 1"):
        client.embed(ONE_IMAGE)


def test_an_answer_without_the_output_is_refused(answering):
    client = answering(200, *binary_answer(SCORES=np.zeros((1, 2), np.float32)))

    with pytest.raises(RequestRejectedError, match="does not answer the tensor contract"):
        client.embed(ONE_IMAGE)


@pytest.mark.parametrize("body", [b"", b"nonsense", b'{"outputs": []}'])
def test_an_unreadable_answer_is_refused(answering, body):
    with pytest.raises(TritonError):
        answering(200, body).embed(ONE_IMAGE)
