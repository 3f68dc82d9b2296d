"""Slow, stuck and lying servers: timeouts hold, and who hangs up is asked again up to twice."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from reverse_image_search.client import (
    Client,
    ServerTimeoutError,
    ServerUnreachableError,
    TritonError,
)
from tests.faults.conftest import slowdown

TIMEOUT = 1.0
ONE_IMAGE = np.zeros((1, 28, 28), np.uint8)
# Too large for the buffers between client and server.
MANY_PIXELS = np.zeros((16, 3, 256, 256), np.float32)

Behavior = Callable[[socket.socket], None]


@contextlib.contextmanager
def server(behavior: Behavior) -> Iterator[tuple[int, list[float]]]:
    """A server that treats each connection so: its port, and when each connection came."""
    listening = socket.create_server(("127.0.0.1", 0))
    arrivals: list[float] = []

    def treat(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            behavior(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            arrivals.append(time.monotonic())
            threading.Thread(target=treat, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listening.getsockname()[1], arrivals
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


def read_request(connection: socket.socket) -> None:
    """Take what has come so far."""
    connection.recv(1 << 20)


def say_nothing(connection: socket.socket) -> None:
    read_request(connection)
    time.sleep(10)


def read_nothing(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    time.sleep(10)


def read_slowly(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    while connection.recv(1000):
        time.sleep(0.05)


def stop_half_way(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"{" * 500)
    time.sleep(10)


SLOW = {
    "says nothing": (say_nothing, ONE_IMAGE),
    "reads nothing": (read_nothing, MANY_PIXELS),
    "reads slowly": (read_slowly, MANY_PIXELS),
    "stops half-way": (stop_half_way, ONE_IMAGE),
}


def test_timeouts_hold(tally):
    """Within 20 %, and without a second attempt: there is no time left for one."""
    row = tally("slow and stuck servers")
    largest = 0.0
    for name, (behavior, images) in SLOW.items():
        with row.case(name), server(behavior) as (port, arrivals):
            client = Client(f"127.0.0.1:{port}", timeout=TIMEOUT)
            start = time.monotonic()
            with pytest.raises(ServerTimeoutError, match=r"did not answer within 1 s"):
                client.embed(images)
            seconds = time.monotonic() - start
            largest = max(largest, abs(seconds / TIMEOUT - 1))
            assert abs(seconds / TIMEOUT - 1) <= 0.2 * slowdown(), f"took {seconds:.2f} s"
            assert len(arrivals) == 1
    row.note = f"timeouts of {TIMEOUT:g} s off by at most {largest:.0%}"


def hang_up(connection: socket.socket) -> None:
    """Close at once, with what came unread: a reset."""


def hang_up_after_reading(connection: socket.socket) -> None:
    read_request(connection)


def hang_up_half_way(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"{" * 500)


def test_who_hangs_up_on_a_new_connection_is_asked_up_to_twice_more(tally):
    """A balancer does so if its replica dies. One that died half-way through an answer is not."""
    row = tally("servers that hang up")
    for behavior, times in ((hang_up, 3), (hang_up_after_reading, 3), (hang_up_half_way, 1)):
        with row.case(behavior.__name__), server(behavior) as (port, arrivals):
            client = Client(f"127.0.0.1:{port}", timeout=10)
            for _ in range(2):
                arrivals.clear()
                with pytest.raises(ServerUnreachableError, match="not reachable"):
                    client.embed(ONE_IMAGE)
                assert len(arrivals) == times


def test_a_kept_connection_that_breaks_is_replaced(tally):
    """What the restart of a server does to connections that were kept open."""
    row = tally("servers that hang up on a kept connection")
    answer = b'HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n{"name":"triton"}'

    for behavior in (hang_up, hang_up_after_reading, hang_up_half_way):
        for survives in (True, False):
            asked: list[socket.socket] = []

            def hang_up_later(
                connection: socket.socket,
                asked: list[socket.socket] = asked,
                survives: bool = survives,
                behavior: Behavior = behavior,
            ) -> None:
                asked.append(connection)
                if len(asked) == 1 or survives:
                    read_request(connection)
                    connection.sendall(answer)
                behavior(connection)

            name = f"{behavior.__name__}, then it {'answers' if survives else 'hangs up again'}"
            with row.case(name), server(hang_up_later) as (port, arrivals):
                client = Client(f"127.0.0.1:{port}", timeout=10)
                assert client.server_metadata() == {"name": "triton"}
                if survives:
                    assert client.server_metadata() == {"name": "triton"}
                else:
                    with pytest.raises(ServerUnreachableError, match="not reachable"):
                        client.embed(ONE_IMAGE)
                assert len(arrivals) <= (3 if survives else 5)


LIES = {
    "no HTTP": b"220 ready for mail\r\n",
    "no status": b"HTTP/1.1 \r\n\r\n",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "a line without end": b"HTTP/1.1 200 " + b"x" * 100_000,
    "1,000 headers": b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 1000 + b"\r\n",
    "a broken chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "gzip that is none": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n"
    b"Content-Length: 2\r\n\r\n{}",
    "a length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n{}",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n"
    b"Content-Length: 0\r\n\r\n",
    "an empty answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "an answer without tensors": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "JSON that is a list": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    "a header length that is none": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    b"Inference-Header-Content-Length: x\r\n\r\n{}",
    "a header length beyond the body": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"
    b"Inference-Header-Content-Length: 99\r\n\r\n{}",
    "an error that is no JSON": b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n\xff\xfe",
    "tensors without their bytes": b"HTTP/1.1 200 OK\r\nContent-Length: 104\r\n"
    b"Inference-Header-Content-Length: 104\r\n\r\n"
    b'{"outputs":[{"name":"OUTPUT__0","datatype":"FP32","shape":[1,9],'
    b'"parameters":{"binary_data_size":36}}]} ',
    "tensors of another shape": b"HTTP/1.1 200 OK\r\nContent-Length: 105\r\n"
    b"Inference-Header-Content-Length: 101\r\n\r\n"
    b'{"outputs":[{"name":"OUTPUT__0","datatype":"FP32","shape":[1,9],'
    b'"parameters":{"binary_data_size":4}}]}\0\0\0\0',
}


@pytest.mark.parametrize("call", ["embed", "model_config", "is_ready"])
def test_answers_that_are_none_are_errors_of_the_client(call, tally):
    """Whatever comes over the line, the caller sees a TritonError, never a KeyError."""
    row = tally(f"servers that answer nonsense, {call}")
    for name, lie in LIES.items():

        def tell(connection: socket.socket, lie: bytes = lie) -> None:
            read_request(connection)
            connection.sendall(lie)

        with row.case(name), server(tell) as (port, _):
            client = Client(f"127.0.0.1:{port}", timeout=5)
            if call == "embed":
                with pytest.raises(TritonError, match=str(port)):
                    client.embed(ONE_IMAGE)
            elif call == "model_config":
                with contextlib.suppress(TritonError):
                    assert isinstance(client.model_config("image_encoder"), dict)
            else:
                client.is_ready()
