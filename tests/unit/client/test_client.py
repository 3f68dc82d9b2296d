"""The client against small servers of our own. Answers of the real one: tests/integration."""

import contextlib
import json
import os
import pickle
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from reverse_image_search import contract
from reverse_image_search.client import (
    Client,
    RequestRejectedError,
    ServerNotReadyError,
    ServerTimeoutError,
    ServerUnreachableError,
    TritonError,
)
from tests.running import skip_or_fail

ONE_IMAGE = np.zeros((1, 28, 28), np.uint8)
HEADER_LENGTH = "Inference-Header-Content-Length"

Answer = Callable[["Handler"], tuple[int, bytes, dict[str, str]]]


class Handler(BaseHTTPRequestHandler):
    """Gives the answer that the server was made with; keeps connections open, as Triton does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.before_reading()
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, body, headers = self.server.answer(self)
        self.server.requests.append((self.path, self.client_address))
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    @property
    def question(self) -> dict:
        """The JSON part of an inference request."""
        return json.loads(self.body[: int(self.headers[HEADER_LENGTH])])

    @property
    def pixels(self) -> np.ndarray:
        """The tensor of an inference request, flat."""
        return np.frombuffer(self.body[int(self.headers[HEADER_LENGTH]) :], np.float32)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Answers all requests in the same way; `requests` are path and peer of those it got."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.requests: list[tuple[str, tuple[str, int]]] = []
        self.before_reading: Callable[[], object] = lambda: None
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def connections(self) -> int:
        """Connections over which requests came."""
        return len({peer for _, peer in self.requests})

    def handle_error(self, *_):
        pass


@contextlib.contextmanager
def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(answer, tls)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def always(status: int, body: bytes) -> Answer:
    return lambda _: (status, body, {})


def inference(
    request_id: str, model: str = "image_encoder", **outputs: np.ndarray
) -> tuple[int, bytes, dict[str, str]]:
    """An answer in the binary form of the inference protocol."""
    header = json.dumps(
        {
            "id": request_id,
            "model_name": model,
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
    return 200, body, {HEADER_LENGTH: str(len(header))}


def first_pixel(handler: Handler) -> tuple[int, bytes, dict[str, str]]:
    """An encoder that tells whose answer it is: the first pixel of the first image."""
    return inference(handler.question["id"], OUTPUT__0=handler.pixels[:1, None])


def ask(client: Client, value: int, side: int = 2) -> int:
    """What `first_pixel` answers to an image of this gray value: the value again."""
    image = np.full((side, side), value, np.uint8)
    return round(255 * float(client.embed([image])[0, 0]))


@pytest.mark.parametrize("shape", [(128,), (0, 128), (1, 1, 128)])
def test_wrong_embeddings_are_told_the_right_shape(shape):
    with pytest.raises(ValueError, match=r"must have shape \(n, D\), got \("):
        Client().find_similar(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="must be finite"):
        Client().find_similar(np.array([[0.6, value]], np.float32))


def test_no_images_are_refused_before_anything_is_sent():
    with pytest.raises(ValueError, match="no images"):
        Client(one_call=True).embed([])


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


def test_other_protocols_are_refused():
    with pytest.raises(ValueError, match="http:// or https://, got grpc://"):
        Client("grpc://localhost:8001")


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


TORCHSCRIPT_TRACEBACK = (
    "PyTorch execute failure: The following operation failed in the TorchScript interpreter.\n"
    "Traceback of TorchScript, serialized code (most recent call last):\n"
    '  File "code/__torch__/index.py", line 12, in forward\n'
    "    _0 = torch.mm(queries, columns)\n         ~~~~~~~~ <--- HERE\n"
    "RuntimeError: mat1 and mat2 shapes cannot be multiplied\n"
)


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
        (
            500,
            json.dumps({"error": TORCHSCRIPT_TRACEBACK}).encode(),
            RequestRejectedError,
            "rejected the request: RuntimeError: mat1 and mat2 shapes cannot be multiplied$",
        ),
    ],
)
def test_error_answers_say_what_happened(status, body, error, message):
    with serving(always(status, body)) as server:
        client = Client(server.address, timeout=30)

        with pytest.raises(error, match=message):
            client.embed(ONE_IMAGE)
        assert not client.is_ready()


def test_a_binary_answer_is_read():
    embeddings = np.array([[0.6, 0.8]], np.float32)
    with serving(lambda asked: inference(asked.question["id"], OUTPUT__0=embeddings)) as server:
        answer = Client(server.address, timeout=30).embed(ONE_IMAGE)

    np.testing.assert_array_equal(answer, embeddings)
    answer *= 2  # the caller's own


@pytest.mark.parametrize("shape", [(3, 2), (1,), (1, 1, 2)])
def test_an_answer_of_another_shape_is_refused(shape):
    output = np.zeros(shape, np.float32)
    with (
        serving(lambda asked: inference(asked.question["id"], OUTPUT__0=output)) as server,
        pytest.raises(RequestRejectedError, match=r"is \(.*\) for a batch of 1"),
    ):
        Client(server.address, timeout=30).embed(ONE_IMAGE)


def test_an_answer_without_the_output_is_refused():
    scores = np.zeros((1, 2), np.float32)
    with (
        serving(lambda asked: inference(asked.question["id"], SCORES=scores)) as server,
        pytest.raises(RequestRejectedError, match="does not answer the tensor contract"),
    ):
        Client(server.address, timeout=30).embed(ONE_IMAGE)


@pytest.mark.parametrize("body", [b"", b"nonsense", b'{"outputs": []}'])
def test_an_unreadable_answer_is_refused(body):
    with serving(always(200, body)) as server, pytest.raises(TritonError):
        Client(server.address, timeout=30).embed(ONE_IMAGE)


@pytest.mark.parametrize("wrong", ["id", "model"])
def test_the_answer_to_another_request_is_refused_and_its_connection_closed(wrong):
    """What a shared connection, or a proxy that mixes answers up, would hand out."""
    lies = [True, False]

    def answer(asked: Handler):
        lie = lies.pop(0)
        request_id = "of somebody else" if lie and wrong == "id" else asked.question["id"]
        model = "vector_similarity" if lie and wrong == "model" else "image_encoder"
        return inference(request_id, model, OUTPUT__0=np.ones((1, 2), np.float32))

    with serving(answer) as server:
        client = Client(server.address, timeout=30)
        with pytest.raises(RequestRejectedError, match="the answer to another request"):
            client.embed(ONE_IMAGE)
        assert client.embed(ONE_IMAGE).tolist() == [[1, 1]]
        assert server.connections == 2


def test_the_configuration_of_another_model_is_refused():
    with (
        serving(always(200, b'{"name": "image_encoder"}')) as server,
        pytest.raises(RequestRejectedError, match="unreadable answer"),
    ):
        Client(server.address, timeout=30).model_config("vector_similarity")


def test_a_connection_is_kept():
    with serving(first_pixel) as server:
        for value in range(5):
            assert ask(Client(server.address, timeout=30), value) == value
        assert server.connections == 1


def test_a_server_that_closed_its_connections_is_asked_again():
    """As after a restart between two searches."""
    closes = [False, True, False]

    def answer(asked: Handler):
        if closes.pop(0):
            asked.close_connection = True
            raise ConnectionError("the server ends")
        return first_pixel(asked)

    with serving(answer) as server:
        client = Client(server.address, timeout=30)
        assert ask(client, 1) == 1
        assert ask(client, 2) == 2
        assert closes == []


@pytest.mark.parametrize("how", ["502", "closed", "reset"])
@pytest.mark.parametrize(("failures", "is_answered"), [(2, True), (3, False)])
def test_a_server_that_dies_with_a_request_is_asked_up_to_twice_more(how, failures, is_answered):
    """A balancer may send what a dying replica dropped to the same replica once more."""
    left = [failures]

    def answer(asked: Handler):
        left[0] -= 1
        if left[0] < 0:
            return first_pixel(asked)
        if how == "502":
            return 502, b'{"error": "it died"}', {}
        if how == "reset":
            linger = struct.pack("ii", 1, 0)
            asked.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        asked.close_connection = True
        raise ConnectionError("it died")

    with serving(answer) as server:
        client = Client(server.address, timeout=30)
        if is_answered:
            assert ask(client, 3) == 3
        else:
            with pytest.raises(TritonError, match=r"it died|is not reachable"):
                ask(client, 3)
        assert left == [-1 if is_answered else 0]


def test_threads_share_a_client_but_no_connection():
    with serving(first_pixel) as server:
        client = Client(server.address, timeout=30)
        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(lambda value: ask(client, value), range(200))) == [*range(200)]
        assert 1 <= server.connections <= 8


def test_threads_that_end_leave_nothing_behind():
    """Streamlit runs a page in a new thread each time; gevent frees nothing by itself."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

    with serving(first_pixel) as server:
        client = Client(server.address, timeout=30)
        ask(client, 0)
        before = held()
        for value in range(100):
            thread = threading.Thread(target=ask, args=(client, value))
            thread.start()
            thread.join()
        after = held()

    # The server's side of the last connections may be open still.
    assert after[0] - before[0] < 20
    assert after[1] - before[1] < 20


def run_children(client: Client, count: int, questions: int) -> int:
    """Fork, ask in all children at once; how many were answered right to the end."""
    children = []
    for child in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                values = [(50 * child + i) % 256 for i in range(questions)]
                status = int([ask(client, value) for value in values] != values)
            finally:
                os._exit(status)
        children.append(pid)
    return sum(os.waitpid(pid, 0)[1] == 0 for pid in children)


FORK = """
import sys
from reverse_image_search.client import Client
from tests.unit.client.test_client import ask, run_children
import threading

client = Client(sys.argv[1], timeout=30)
assert ask(client, 7) == 7
answers, go_on = [], threading.Event()
threads = [threading.Thread(target=lambda: (ask(client, 9), go_on.wait())) for _ in range(3)]
for thread in threads:
    thread.start()
print(run_children(client, 4, 50))
go_on.set()
assert ask(client, 8) == 8
thread = threading.Thread(target=lambda: answers.append(run_children(client, 2, 10)))
thread.start()
thread.join()
print(answers[0])
"""


def test_a_forked_process_never_gets_the_answer_of_another():
    """A client that was used before, while other threads have connections, and from a thread."""
    with serving(first_pixel) as server:
        result = subprocess.run(
            [sys.executable, "-c", FORK, server.address],
            capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[3],
        )  # fmt: skip

    assert (result.stdout.split(), result.stderr, result.returncode) == (["4", "2"], "", 0)


def test_a_client_can_be_pickled():
    """For a process that is spawned, not forked."""
    with serving(first_pixel) as server:
        client = Client(server.address, timeout=30)
        assert ask(client, 1) == 1
        assert ask(pickle.loads(pickle.dumps(client)), 2) == 2


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from reverse_image_search.client import Client
from tests.unit.client.test_client import ask

client = Client(sys.argv[1], timeout=30)
assert ask(client, 1) == 1
print("asking", flush=True)
try:
    print(ask(client, 2, side=int(sys.argv[2])))
except KeyboardInterrupt:
    print("interrupted")
print(ask(client, 3))
"""


@pytest.mark.parametrize("side", [2, 1024], ids=["while waiting", "while sending"])
def test_after_an_interruption_the_next_answer_is_the_right_one(side):
    """What is left of the first request and its answer must not be taken for the second."""
    asked, interrupted = threading.Event(), threading.Event()

    def stall_second() -> None:
        if len(server.requests) == 1:
            asked.set()
            interrupted.wait(60)

    with serving(first_pixel) as server:
        server.before_reading = stall_second
        process = subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED, server.address, str(side)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            cwd=Path(__file__).parents[3],
        )  # fmt: skip
        try:
            assert asked.wait(60), "the question did not come"
            time.sleep(0.2 if side > 2 else 0)  # until the buffers are full
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
            interrupted.set()
            output, _ = process.communicate(timeout=60)
        finally:
            interrupted.set()
            process.kill()

    assert output == "asking\ninterrupted\n3\n"


def test_after_a_timeout_the_next_answer_is_the_right_one():
    late = threading.Event()

    def answer(handler: Handler):
        if handler.pixels[0] == np.float32(2 / 255):
            late.wait(60)
        return first_pixel(handler)

    with serving(answer) as server:
        client = Client(server.address, timeout=1)
        with pytest.raises(ServerTimeoutError):
            ask(client, 2)
        late.set()
        assert [ask(client, value) for value in (3, 4)] == [3, 4]


def test_a_proxy_in_the_environment_is_not_asked(free_port, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with serving(first_pixel) as server:
        assert ask(Client(server.address, timeout=30), 5) == 5


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate for 127.0.0.1 and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    command = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
        "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-",
    ]  # fmt: skip
    try:
        path.write_bytes(subprocess.run(command, capture_output=True, check=True).stdout)
    except FileNotFoundError:
        skip_or_fail("there is no openssl command")
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def test_https_trusts_what_the_system_trusts(certificate, tls, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(first_pixel, tls) as server:
        assert ask(Client(f"https://{server.address}", timeout=30), 6) == 6


def test_https_refuses_an_unknown_certificate(tls):
    with (
        serving(first_pixel, tls) as server,
        pytest.raises(ServerUnreachableError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        ask(Client(f"https://{server.address}", timeout=30), 6)


@pytest.mark.parametrize(("status", "calls"), [(200, ["image_search"]), (400, contract.MODELS)])
def test_one_call_is_decided_once_and_said_once(status, calls, recwarn):
    def answer(asked: Handler):
        if asked.command == "GET":
            return status, b"", {}
        model = asked.path.split("/")[3]
        if model == "image_encoder":
            return first_pixel(asked)
        ids, scores = np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)
        return inference(asked.question["id"], model, OUTPUT__0=ids, OUTPUT__1=scores)

    with serving(answer) as server:
        client = Client(server.address, timeout=30, one_call=True)
        for _ in range(3):
            client.search(ONE_IMAGE)
        paths = [path for path, _ in server.requests]

    models = [getattr(model, "name", model) for model in calls]
    assert paths == [
        "/v2/models/image_search/ready",
        *(3 * [f"/v2/models/{model}/infer" for model in models]),
    ]
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == (0 if status == 200 else 1)
    assert all("does not serve image_search" in message for message in said)
