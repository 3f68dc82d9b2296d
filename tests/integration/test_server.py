"""The server itself: readiness, metadata, batching, and what it answers to bad requests."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from reverse_image_search import contract
from reverse_image_search.client import Client, RequestRejectedError, ServerNotReadyError
from reverse_image_search.layout import MODEL_FILENAME, config_file, version_folder, version_policy
from reverse_image_search.serving.export import write_model_files
from reverse_image_search.serving.live import wait_until_served
from reverse_image_search.serving.model_config import ServerSettings, model_config
from reverse_image_search.serving.publishing import staging
from tests.running import open_url, wait_until


def get(url: str) -> tuple[int, bytes]:
    try:
        with open_url(url, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize(
    "path",
    [
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/image_encoder/ready",
        "/v2/models/vector_similarity/ready",
    ],
)
def test_ready_endpoints(triton, path):
    assert get(triton.url + path)[0] == 200


def test_the_server_is_not_waited_for_by_who_publishes_in_a_copy_of_its_folder(
    triton, small_build, tmp_path
):
    copy, link = tmp_path / "copy", tmp_path / "link"
    shutil.copytree(small_build, copy)
    config = config_file(copy / "model_repo", "vector_similarity")
    config.write_text(config.read_text().replace(version_policy(1), version_policy(2)))
    link.symlink_to(small_build)

    assert wait_until_served(copy, triton.url, timeout=1) is None
    assert wait_until_served(link, triton.url) is not None


def test_metadata_is_the_contract(client, gallery_embeddings):
    sizes = {"D": gallery_embeddings.shape[1], "K": 100}
    for model in contract.MODELS:
        metadata = client.model_metadata(model.name)

        assert metadata["name"] == model.name
        assert metadata["platform"] == "pytorch_libtorch"
        assert metadata["versions"] == ["1"]
        for kind, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
            assert metadata[kind] == [
                {
                    "name": spec.name,
                    "datatype": spec.datatype,
                    "shape": [-1, *spec.dims(**sizes)],
                }
                for spec in specs
            ]


def test_batching_is_on(client):
    for model in contract.MODELS:
        config = client.model_config(model.name)
        assert config["max_batch_size"] == contract.MAX_BATCH_SIZE
        assert "dynamic_batching" in config


def test_metrics_are_served(triton):
    status, body = get(f"http://127.0.0.1:{triton.metrics_port}/metrics")

    assert status == 200
    assert b'nv_inference_request_success{model="image_encoder",version="1"}' in body


def test_it_listens_on_loopback_only(triton):
    """Its release has known critical vulnerabilities."""
    ports = {triton.http_port, triton.grpc_port, triton.metrics_port}
    listening = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table) as file:
            for line in list(file)[1:]:
                address, state = line.split()[1], line.split()[3]
                host, _, port = address.partition(":")
                if state == "0A" and int(port, 16) in ports:
                    listening.setdefault(int(port, 16), set()).add(host)

    assert set(listening) == ports
    # 127.0.0.1, little-endian, and the same as an IPv6 socket shows it.
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert all(hosts <= loopback for hosts in listening.values()), listening


def statistics(triton, model: str) -> tuple[int, int]:
    """Inferences and executions of a model since the server started."""
    body = json.loads(get(f"{triton.url}/v2/models/{model}/stats")[1])
    (stats,) = body["model_stats"]
    return stats["inference_count"], stats["execution_count"]


def test_concurrent_requests_run_as_batches(triton, client, gallery_embeddings, figure):
    """64 threads ask at once: Triton must run fewer times than it is asked."""
    requests, threads = 512, 64
    before = statistics(triton, "vector_similarity")
    start = threading.Barrier(threads)

    def ask(thread: int) -> None:
        start.wait()
        for i in range(thread, requests, threads):
            neighbors = client.find_similar(gallery_embeddings[i : i + 1])
            assert neighbors.scores[0, 0] == pytest.approx(1, abs=1e-5)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, range(threads)))

    after = statistics(triton, "vector_similarity")
    inferences, executions = (new - old for new, old in zip(after, before, strict=True))
    figure(f"dynamic batching: {inferences} inferences in {executions} executions")
    assert inferences == requests
    assert executions < requests


@pytest.mark.parametrize(
    ("model", "shape", "datatype"),
    [
        ("image_encoder", [1, 4, 28, 28], "FP32"),
        ("image_encoder", [1, 3, 28], "FP32"),
        ("image_encoder", [65, 3, 1, 1], "FP32"),
        ("image_encoder", [1, 3, 2, 2], "INT64"),
        ("vector_similarity", [1, 7], "FP32"),
    ],
)
def test_requests_outside_the_contract_are_answered_with_an_error(
    triton, client, query_pixels, model, shape, datatype
):
    body = {
        "inputs": [
            {
                "name": "INPUT__0",
                "datatype": datatype,
                "shape": shape,
                "data": [0] * int(np.prod(shape)),
            }
        ]
    }
    request = urllib.request.Request(
        f"{triton.url}/v2/models/{model}/infer", json.dumps(body).encode()
    )

    with pytest.raises(urllib.error.HTTPError) as failure:
        open_url(request, timeout=60)
    assert failure.value.code in (400, 500)
    assert json.load(failure.value)["error"]
    assert client.embed(query_pixels[:1]).shape[0] == 1


def test_client_raises_what_the_server_rejects(client):
    with pytest.raises(RequestRejectedError, match=r"rejected the request: .*\[1,7\]"):
        client.find_similar(np.zeros((1, 7), np.float32))


def test_unknown_model_is_not_ready(client):
    with pytest.raises(ServerNotReadyError, match=r"build_models\.sh"):
        client.model_config("no_such_model")


class RefusesDarkImages(nn.Module):
    """Stand-in encoder: the mean color of each image, an error for a batch with a black one."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        means = images.mean(dim=(2, 3))
        if bool((means.sum(dim=1) == 0).any()):
            raise RuntimeError("a black image")
        return means


@pytest.fixture
def refusing_server(small_build, start_triton, tmp_path):
    """A server whose encoder fails for black images; the rest is the small build's."""
    model = contract.IMAGE_ENCODER
    config = model_config(
        model,
        embedding_dim=3,
        top_k=100,
        example_dims=(3, 4, 4),
        parameters={},
        # A batch waits for others, so that good and bad requests do meet in one.
        settings=ServerSettings(max_queue_delay=50_000),
    )
    with staging(tmp_path) as folder:
        without_sums = shutil.ignore_patterns("SHA256SUMS")
        shutil.copytree(small_build / "gallery", folder / "gallery", ignore=without_sums)
        shutil.copytree(small_build / "model_repo", folder / "model_repo")
        version = version_folder(folder / "model_repo", model.name)
        shutil.rmtree(version)
        write_model_files({MODEL_FILENAME: RefusesDarkImages()}, version, input_ndim=4)
        config_file(folder / "model_repo", model.name).write_text(config)
    return start_triton(tmp_path)


def test_a_model_error_is_an_error_response_and_no_dead_server(refusing_server):
    """Also when it strikes in a batch: the good requests beside the bad one get their answers."""
    client = Client(refusing_server.url, timeout=60)
    server_pid = refusing_server.server_pid
    black, white = np.zeros((1, 4, 4), np.uint8), np.full((1, 4, 4), 255, np.uint8)

    with pytest.raises(RequestRejectedError, match="a black image"):
        client.embed(black)

    def ask(i: int) -> str:
        try:
            return str(client.embed(black if i % 4 == 0 else white).tolist())
        except RequestRejectedError as error:
            return str(error)

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, range(64)))

    for i, answer in enumerate(answers):
        assert ("a black image" in answer) if i % 4 == 0 else (answer == "[[1.0, 1.0, 1.0]]")
    assert refusing_server.server_pid == server_pid
    wait_until(client.is_ready, "ready after errors", timeout=60)
