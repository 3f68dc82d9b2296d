"""Whose WebSockets the app accepts, and that it asks nobody outside about it."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.running import BIN, REPO_ROOT, free_ports, script_environment, wait_until


class _OutsideWorld(BaseHTTPRequestHandler):
    """A proxy that notes who is called and keeps the caller waiting."""

    def do_GET(self) -> None:
        self.server.calls.append(self.requestline)
        time.sleep(3)

    do_CONNECT = do_GET  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def _app(**variables: str) -> Iterator[int]:
    """Port of an app whose calls to the internet would go to a proxy of the test."""
    (port,) = free_ports(1)
    process = subprocess.Popen(
        [BIN / "start_app.sh"],
        cwd=REPO_ROOT,
        env=script_environment(RUNTIME="local", APP_PORT=str(port), **variables),
        stdin=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"http://127.0.0.1:{port}/_stcore/health", timeout=2
            )
        except OSError:
            return False
        return True

    try:
        wait_until(answers, "the app answers")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


def _handshake(port: int, origin: str, host: str) -> int:
    """Status of the answer to the opening handshake of a WebSocket."""
    request = (
        f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n"
        "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request.encode())
        return int(connection.recv(4096).split()[1])


def test_foreign_origin_is_refused_at_once_without_a_call_to_the_outside():
    outside = ThreadingHTTPServer(("127.0.0.1", 0), _OutsideWorld)
    outside.calls = []
    threading.Thread(target=outside.serve_forever, daemon=True).start()
    proxy = f"http://127.0.0.1:{outside.server_port}"
    try:
        with _app(http_proxy=proxy, https_proxy=proxy, no_proxy="", NO_PROXY="") as port:
            assert _handshake(port, f"http://localhost:{port}", f"localhost:{port}") == 101
            started = time.monotonic()
            assert _handshake(port, "http://evil.test", f"127.0.0.1:{port}") == 403
            assert time.monotonic() - started < 1.5  # the outside takes 3 s
            assert outside.calls == []
    finally:
        outside.shutdown()
        outside.server_close()


@pytest.mark.parametrize(
    "variables",
    [
        {"STREAMLIT_BROWSER_SERVER_ADDRESS": "search.example.org"},
        {"STREAMLIT_SERVER_CORS_ALLOWED_ORIGINS": "https://a.example https://search.example.org"},
    ],
    ids=lambda variables: next(iter(variables)),
)
def test_setting_for_a_proxy_that_does_not_forward_the_host(variables):
    with _app(**variables) as port:
        host = f"127.0.0.1:{port}"
        assert _handshake(port, "https://search.example.org", host) == 101
        assert _handshake(port, "https://search.example.org:8443", host) == 101
        assert _handshake(port, "https://evil.test", host) == 403
