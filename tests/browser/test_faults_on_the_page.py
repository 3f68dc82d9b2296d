"""Servers that die, hang or change, and galleries that go: told on the page, and survived."""

import os
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import gallery_file
from tests.browser.app_page import PATIENCE
from tests.other_build import make_other_build
from tests.running import free_ports

START_COMMAND = "reverse_image_search/bin/start_inference_server_cpu.sh"


@pytest.fixture
def seconds(figure):
    """``with seconds("told after"):`` measures its block."""

    @contextmanager
    def measure(what):
        start = time.monotonic()
        yield
        figure(f"page: {what} {time.monotonic() - start:.1f} s")

    return measure


@pytest.fixture
def own_build(small_build, tmp_path):
    """A copy of the small build, to be broken."""
    return Path(shutil.copytree(small_build, tmp_path / "build"))


def test_server_and_gallery_change_under_an_open_page(
    start_triton, start_app, open_page, small_build, own_build, tmp_path, seconds
):
    triton = start_triton(own_build)
    app = start_app(triton, own_build)
    page = open_page(app=app)
    first = Gallery(gallery_file(own_build))
    page.pick("query", "test-2")

    triton.stop()
    with seconds("server gone, told after"):
        page.wait_for_problem(f"Triton is not reachable at {triton.url}")
    page.page.get_by_test_id("query").nth(5).click()
    page.wait_for_problem(START_COMMAND)

    triton.start()
    with seconds("server back, results after"):
        page.wait_for_query("Test image 5,")
    _assert_images_of(page, first)

    # Another build is published; the server still serves the one before.
    other = make_other_build(small_build, tmp_path / "other")
    shutil.move(own_build / "gallery", tmp_path / "old_gallery")
    shutil.copytree(other / "gallery", own_build / "gallery")
    with seconds("gallery replaced, told after"):
        page.wait_for_problem("models are of another build than the gallery")
    page.page.get_by_test_id("query").nth(7).click()
    page.page.wait_for_timeout(1000)
    page.wait_for_problem("models are of another build than the gallery")

    # The server is started again, with the new models.
    shutil.rmtree(own_build / "model_repo")
    shutil.copytree(other / "model_repo", own_build / "model_repo")
    triton.stop()
    triton.start()
    with seconds("same build again, results after"):
        page.wait_for_query("Test image 7,")
    _assert_images_of(page, Gallery(gallery_file(own_build)))

    # The gallery goes back: now the server is ahead.
    shutil.rmtree(own_build / "gallery")
    page.wait_for_problem("There is no gallery at")
    shutil.move(tmp_path / "old_gallery", own_build / "gallery")
    page.wait_for_problem("models are of another build than the gallery")
    assert "Traceback" not in app.log


def test_server_that_hangs_and_is_killed(
    start_triton, start_app, open_page, own_build, query_pixels, found_by_server, seconds
):
    """The supervisor starts it again; what was clicked meanwhile is answered without a reload."""
    triton = start_triton(own_build)
    page = open_page(app=start_app(triton, own_build))
    hanging = triton.server_pid
    os.kill(hanging, signal.SIGSTOP)
    try:
        with seconds("server hangs, told after"):
            page.wait_for_problem(f"Triton at {triton.url} did not answer within")
    finally:
        with suppress(ProcessLookupError):  # the supervisor may have ended it
            os.kill(hanging, signal.SIGCONT)
    with seconds("server goes on, results after"):
        page.wait_for_query("Test image 0,")

    os.kill(triton.server_pid, signal.SIGKILL)
    page.tile("query", "test-1").click()
    with seconds("server killed, results after"):
        page.wait_for_query("Test image 1,", timeout=4 * PATIENCE)
    assert [tile.id for tile in page.results] == found_by_server(query_pixels[1])[0]


def _assert_images_of(page, gallery):
    """Every image on the page is the one that `gallery` has for its id."""
    for tile in page.results:
        assert (tile.pixels == gallery.images([tile.id])[0].pixels).all()
    for tile in page.queries:
        assert (tile.pixels == gallery.queries([tile.id])[0].pixels).all()
    assert page.results
    assert page.queries


def test_model_that_is_not_ready(start_app, open_page, own_build, triton):
    """A server that serves other models: stood in for by one whose models have other names."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Loading(BaseHTTPRequestHandler):
        def do_GET(self):
            body = b'{"error": "Request for unknown model: \'image_encoder\' is not found"}'
            self.send_response(400)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Loading) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        stand_in = type(triton)(own_build, server.server_port, *free_ports(2))
        page = open_page(app=start_app(stand_in, own_build))
        page.wait_for_problem("does not serve the models")
        server.shutdown()
