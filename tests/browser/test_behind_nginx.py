"""The nginx file of doc/running_in_public.md: a real nginx before the app and a stand-in Triton."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton_http

from tests.image_corpus import data_of
from tests.running import IN_CI, REPO_ROOT, free_ports, skip_or_fail, wait_until

NAME, PASSWORD = "visitor", "a password"
AUTHORIZATION = "Basic " + base64.b64encode(f"{NAME}:{PASSWORD}".encode()).decode()
UNCHECKED = ssl._create_unverified_context()


@pytest.fixture(scope="module")
def nginx_program(tmp_path_factory) -> str:
    """nginx of the machine; in CI, else, that of Debian's package, unpacked and not installed."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program:
        return program
    if not IN_CI:
        pytest.skip("there is no nginx: apt-get install nginx-light")
    folder = tmp_path_factory.mktemp("nginx")
    for command in (["apt-get", "update"], ["apt-get", "download", "nginx"]):
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            skip_or_fail(f"nginx cannot be had: {result.stderr}")
    subprocess.run(["dpkg-deb", "-x", next(folder.glob("*.deb")), folder], check=True)
    return str(folder / "usr" / "sbin" / "nginx")


class _StandInTriton(BaseHTTPRequestHandler):
    """Remembers what the proxy lets through."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_GET(self) -> None:
        self.server.requests.append((self.path, {}, b""))
        self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def stand_in_triton() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _StandInTriton)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@dataclass
class Proxy:
    """A running nginx."""

    port: int

    def status(
        self, method: str, path: str, body: object = None, password: bool = True, **headers: str
    ) -> int:
        """Send a request and return the status of the answer."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=UNCHECKED, timeout=30
        )
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if password:
            headers["Authorization"] = AUTHORIZATION
        try:
            connection.request(method, path, body=body, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def handshake(self, origin: str, host: str) -> int:
        """Open a WebSocket as a browser does that knows the proxy as `host`."""
        return self.status(
            "GET", "/_stcore/stream", Host=host, Origin=origin, Connection="Upgrade",
            Upgrade="websocket", Sec_WebSocket_Version="13",
            Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
        )  # fmt: skip


@pytest.fixture(scope="module")
def proxy(nginx_program, app, stand_in_triton, tmp_path_factory) -> Iterator[Proxy]:
    """The documented file with the test's ports and paths."""
    folder, (port,) = tmp_path_factory.mktemp("proxy"), free_ports(1)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=search.example.org", "-keyout", "search.key", "-out", "search.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    hashed = subprocess.run(
        ["openssl", "passwd", "-apr1", PASSWORD], check=True, capture_output=True, text=True
    ).stdout
    (folder / "search.htpasswd").write_text(f"{NAME}:{hashed}")
    (folder / "nginx.conf").write_text(_configuration(folder, port, app.url, stand_in_triton))
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [nginx_program, "-p", folder, "-c", folder / "nginx.conf"],
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    proxy = Proxy(port)

    def answers() -> bool:
        assert process.poll() is None, (folder / "output.txt").read_text()
        try:
            return proxy.status("GET", "/_stcore/health") == 200
        except OSError:
            return False

    try:
        wait_until(answers, "nginx answers")
        yield proxy
    finally:
        process.terminate()
        process.wait(timeout=30)


def _configuration(folder: Path, port: int, app_url: str, triton: ThreadingHTTPServer) -> str:
    document = (REPO_ROOT / "doc" / "running_in_public.md").read_text()
    server = re.search(r"```nginx\n(.*?)```", document, re.DOTALL)[1]
    for documented, tested in {
        "listen 443": f"listen 127.0.0.1:{port}",
        "http://127.0.0.1:8501": app_url.rstrip("/"),
        "http://127.0.0.1:8000": f"http://127.0.0.1:{triton.server_port}",
        "/etc/ssl/": f"{folder}/",
        "/etc/nginx/": f"{folder}/",
    }.items():
        assert documented in server
        server = server.replace(documented, tested)
    user = "user root;" if os.getuid() == 0 else ""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log; events {{}}"
        f"http {{ access_log off; {temporary}\n{server}\n}}"
    )


def _binary_request(shape: tuple[int, ...], images: int = 1) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a request whose tensor says `shape` and holds `images` images."""
    pixels = np.zeros((images, 3, 28, 28), np.float32)
    tensor = triton_http.InferInput("INPUT__0", pixels.shape, "FP32")
    tensor.set_data_from_numpy(pixels)
    body, length = triton_http.InferenceServerClient.generate_request_body([tensor])
    header = json.loads(body[:length])
    header["inputs"][0]["shape"] = shape
    header = json.dumps(header).encode()
    return header + body[length:], {"Inference_Header_Content_Length": str(len(header))}


def test_page_works_on_another_port(proxy, browser, tmp_path):
    """The whole page in a browser: WebSocket, search and upload."""
    from tests.browser.app_page import open_app

    (tmp_path / "photo.jpg").write_bytes(data_of("exif_6.jpg"))
    page = open_app(
        browser,
        f"https://search.localhost:{proxy.port}/",
        ignore_https_errors=True,
        http_credentials={"username": NAME, "password": PASSWORD},
    )
    try:
        assert len(page.results) == 20
        page.upload(tmp_path / "photo.jpg")
        page.wait_for_query("photo.jpg")
        assert len(page.results) == 20
    finally:
        page.page.context.close()


@pytest.mark.parametrize("port", ["", ":8443"])
def test_any_host_name_works_without_a_setting(proxy, port):
    host = f"search.example.org{port}"

    assert proxy.handshake(f"https://{host}", host) == 101
    assert proxy.handshake("https://evil.example", host) == 403


def test_password_is_asked_for(proxy, stand_in_triton):
    body, headers = _binary_request((1, 3, 28, 28))
    before = len(stand_in_triton.requests)

    for path in ("/", "/_stcore/stream", "/_stcore/health"):
        assert proxy.status("GET", path, password=False) == 401
    infer = "/v2/models/image_encoder/infer"
    assert proxy.status("POST", infer, body, password=False, **headers) == 401
    assert len(stand_in_triton.requests) == before


def test_programs_can_send_binary_tensors_to_both_models(proxy, stand_in_triton):
    body, headers = _binary_request((1, 3, 28, 28))
    for model in ("image_encoder", "vector_similarity"):
        assert proxy.status("POST", f"/v2/models/{model}/infer", body, **headers) == 200
        path, _, received = stand_in_triton.requests[-1]
        assert path == f"/v2/models/{model}/infer"
        assert received == body


def test_chunks_arrive_as_one_body(proxy, stand_in_triton):
    body, headers = _binary_request((1, 3, 28, 28))
    chunks = (body[at : at + 1000] for at in range(0, len(body), 1000))

    assert proxy.status("POST", "/v2/models/image_encoder/infer", chunks, **headers) == 200
    _, received_headers, received = stand_in_triton.requests[-1]
    assert received_headers["Content-Length"] == str(len(body))
    assert "Transfer-Encoding" not in received_headers
    assert received == body


def test_batch_of_0_passes_the_proxy_so_the_models_must_handle_it(proxy, stand_in_triton):
    """As the document says; tests/faults sends such requests to the models."""
    body, headers = _binary_request((0, 3, 28, 28))

    assert proxy.status("POST", "/v2/models/image_encoder/infer", body, **headers) == 200
    assert stand_in_triton.requests[-1][2] == body


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v2/models/image_encoder/infer", {}, 415),  # JSON
        (
            "POST",
            "/v2/models/image_encoder/infer",
            {"Inference_Header_Content_Length": "2", "Content_Encoding": "gzip"},
            415,
        ),
        ("GET", "/v2/models/image_encoder/infer", {"Inference_Header_Content_Length": "2"}, 403),
        ("POST", "/v2/models/image_search/infer", {"Inference_Header_Content_Length": "2"}, None),
        ("POST", "/v2/models/image_encoder/versions/1/infer", {}, None),
        ("GET", "/v2/models/image_encoder/config", {}, None),
        ("GET", "/v2/models/stats", {}, None),
        ("POST", "/v2/repository/index", {}, None),
        ("POST", "/v2/systemsharedmemory/region/x/register", {}, None),
    ],
)
def test_nothing_else_reaches_triton(proxy, stand_in_triton, method, path, headers, status):
    before = len(stand_in_triton.requests)

    answer = proxy.status(method, path, b"{}", **headers)

    assert status is None or answer == status
    assert len(stand_in_triton.requests) == before
