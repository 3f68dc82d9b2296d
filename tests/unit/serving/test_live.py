"""What a command says about the running server, which a small one stands for."""

import json
import re
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from reverse_image_search import contract, layout
from reverse_image_search.serving.live import NotServedError, next_step, wait_until_served
from reverse_image_search.serving.model_config import model_config


def config_text(model: contract.ModelSpec, gallery_id: str, version: int) -> str:
    parameters = {"encoder_id": "encoder", "gallery_id": gallery_id}
    if model is contract.IMAGE_ENCODER:
        del parameters["gallery_id"]
    text = model_config(model, embedding_dim=8, top_k=2, example_dims=None, parameters=parameters)
    return text.replace(layout.version_policy(1), layout.version_policy(version))


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    """Version 3 of both models of the gallery "ours" is published."""
    for model in contract.MODELS:
        path = layout.config_file(tmp_path / layout.MODEL_REPO, model.name)
        path.parent.mkdir(parents=True)
        path.write_text(config_text(model, "ours", version=3))
    return tmp_path


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """``serve("ours", 2, 2, 3)``: URL of a server that has these versions, one at each question.

    The last one stays. Without versions, it has other models.
    """
    servers = []

    def start(gallery_id: str, *versions: int) -> str:
        left = list(versions)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                model = self.path.split("/")[3]
                is_ready, is_known = self.path == "/v2/health/ready", bool(left)
                self.send_response(200 if is_ready or is_known else 400)
                self.end_headers()
                if is_known and not is_ready:
                    version = left.pop(0) if len(left) > 1 else left[0]
                    self.wfile.write(json.dumps(served(model, version)).encode())

            def log_message(self, *_):
                pass

        def served(model: str, version: int) -> dict:
            parameters = {"encoder_id": {"string_value": "encoder"}}
            if model == contract.VECTOR_SIMILARITY.name:
                parameters["gallery_id"] = {"string_value": gallery_id}
            policy = {"specific": {"versions": [version]}}
            return {"name": model, "parameters": parameters, "version_policy": policy}

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_published_version_is_waited_for(output_dir, serve):
    assert wait_until_served(output_dir, serve("ours", 2, 2, 2, 2, 3)) >= 0.02


def test_a_version_that_is_not_taken_over_is_an_error(output_dir, serve):
    with pytest.raises(NotServedError, match=r"not taken over the new version within 0\.2 s"):
        wait_until_served(output_dir, serve("ours", 2), timeout=0.2)


def test_a_server_of_another_gallery_is_not_waited_for(output_dir, serve):
    assert wait_until_served(output_dir, serve("theirs", 3)) is None
    assert wait_until_served(output_dir, serve("theirs")) is None, "other models"


def test_a_server_of_the_gallery_that_was_replaced_is_waited_for(output_dir, serve):
    previous = output_dir / ".build" / "previous" / layout.MODEL_REPO
    path = layout.config_file(previous, contract.VECTOR_SIMILARITY.name)
    path.parent.mkdir(parents=True)
    path.write_text(config_text(contract.VECTOR_SIMILARITY, "replaced", version=2))

    with pytest.raises(NotServedError):
        wait_until_served(output_dir, serve("replaced", 2), timeout=0.2)


def test_without_a_server_the_next_step_is_to_start_one(output_dir, free_port, monkeypatch):
    monkeypatch.delenv("TRITON_URL", raising=False)
    monkeypatch.setenv("TRITON_HTTP_PORT", str(free_port()))

    assert next_step(output_dir) == f"Next: {layout.START_COMMAND}"

    monkeypatch.setenv("TRITON_URL", "http://name-that-is-not-there.invalid:8000")
    assert next_step(output_dir) == f"Next: {layout.START_COMMAND}"


def test_what_the_running_server_did_is_said(output_dir, serve, monkeypatch):
    monkeypatch.setenv("TRITON_URL", serve("ours", 3))

    assert re.search(r"took it over within \d+\.\d s", next_step(output_dir))
