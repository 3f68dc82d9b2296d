"""Slow, stuck and lying servers: time-outs hold, attempts are few, and only after broken lines."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from reverse_image_search.client.client import (
    Client,
    ServerTimeoutError,
    ServerUnreachableError,
    TritonError,
)

TIMEOUT = 1.0
TOLERANCE = 0.2
ONE_IMAGE = np.zeros((1, 28, 28), np.uint8)
# Too large for the buffers between client and server.
MANY_PIXELS = np.zeros((16, 3, 256, 256), np.float32)

Behaviour = Callable[[socket.socket], None]


@contextlib.contextmanager
def server(behaviour: Behaviour) -> Iterator[tuple[int, list[float]]]:
    """A server that treats each connection so: its port, and when each connection came."""
    listening = socket.create_server(("127.0.0.1", 0))
    arrivals: list[float] = []

    def treat(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            behaviour(connection)

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


def drip(connection: socket.socket, data: bytes) -> None:
    """A byte every 50 ms: each read succeeds long before any time-out of its own."""
    for i in range(len(data)):
        connection.sendall(data[i : i + 1])
        time.sleep(0.05)


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


def drip_status(connection: socket.socket) -> None:
    read_request(connection)
    drip(connection, b"HTTP/1.1 200 O" + b"K" * 1000)


def drip_headers(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    drip(connection, b"X-Filler: x\r\n" * 90)


def drip_body(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    drip(connection, b"{" * 1000)


def drip_chunks(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(connection, b"1\r\n{\r\n" * 1000)


def drip_without_end(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    drip(connection, b"{" * 1000)


def stop_half_way(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"{" * 500)
    time.sleep(10)


SLOW = {
    "says nothing": (say_nothing, ONE_IMAGE),
    "reads nothing": (read_nothing, MANY_PIXELS),
    "reads slowly": (read_slowly, MANY_PIXELS),
    "drips its status line": (drip_status, ONE_IMAGE),
    "drips its headers": (drip_headers, ONE_IMAGE),
    "drips its body": (drip_body, ONE_IMAGE),
    "drips its body in chunks": (drip_chunks, ONE_IMAGE),
    "drips a body without a length": (drip_without_end, ONE_IMAGE),
    "stops half-way": (stop_half_way, ONE_IMAGE),
}


def test_time_outs_hold(tally):
    """Within 20 %, and without a second attempt: there is no time left for one."""
    row = tally("slow and stuck servers")
    largest = 0.0
    for name, (behaviour, images) in SLOW.items():
        with row.case(name), server(behaviour) as (port, arrivals):
            client = Client(f"127.0.0.1:{port}", timeout=TIMEOUT)
            start = time.monotonic()
            with pytest.raises(ServerTimeoutError, match=r"did not answer within 1 s"):
                client.embed(images)
            seconds = time.monotonic() - start
            largest = max(largest, abs(seconds / TIMEOUT - 1))
            assert abs(seconds / TIMEOUT - 1) <= TOLERANCE, f"took {seconds:.2f} s"
            assert len(arrivals) == 1
    row.note = f"time-outs of {TIMEOUT:g} s off by at most {largest:.0%}"


def hang_up(connection: socket.socket) -> None:
    """Close at once, with what came unread: a reset."""


def hang_up_after_reading(connection: socket.socket) -> None:
    read_request(connection)


def hang_up_half_way(connection: socket.socket) -> None:
    read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"{" * 500)


def test_broken_connections_are_tried_three_times_with_jitter(monkeypatch, tally):
    row = tally("servers that hang up")
    sleep, slept, client_thread = time.sleep, [], threading.get_ident()

    def record(seconds: float) -> None:
        if threading.get_ident() == client_thread:  # servers of earlier tests may sleep as well
            slept.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", record)
    for behaviour in (hang_up, hang_up_after_reading, hang_up_half_way):
        with row.case(behaviour.__name__), server(behaviour) as (port, arrivals):
            client = Client(f"127.0.0.1:{port}", timeout=10)
            for _ in range(4):
                arrivals.clear()
                slept.clear()
                with pytest.raises(ServerUnreachableError, match="not reachable"):
                    client.embed(ONE_IMAGE)
                assert len(arrivals) == 3
                assert 0.1 <= slept[0] <= 0.2
                assert 0.2 <= slept[1] <= 0.4
                assert slept[1] != 2 * slept[0], "no jitter"


def test_a_connection_that_breaks_once_is_not_noticed(tally):
    """What the server's restart does to connections that were kept open."""
    row = tally("servers that hang up once")
    answered = []

    def break_first(connection: socket.socket) -> None:
        read_request(connection)
        if answered:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        answered.append(connection)

    with row.case("once"), server(break_first) as (port, arrivals):
        assert Client(f"127.0.0.1:{port}", timeout=10).server_metadata() == {}
        assert len(arrivals) == 2


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
