"""Little memory: the server runs, or says before the long build what it needs."""

import contextlib
import http.client
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from reverse_image_search.client.client import Client
from tests.faults.conftest import is_right, wait_for_right_answer
from tests.running import BIN, Triton, free_ports, memory_cgroup, script_environment, wait_until

SCRIPT = BIN / "start_inference_server_cpu.sh"


def start_in(group: Path, server: Triton, *arguments: str) -> subprocess.CompletedProcess:
    """Start `server` in a control group."""
    code = 'echo $$ >"$0" && exec "$@"'
    command = ["bash", "-c", code, group / "cgroup.procs", SCRIPT, "--detach", *arguments]
    environment = script_environment(**server.environment)
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("gigabytes", [2, 4, 6, 8, 16])
def test_a_small_machine_serves(small_build, known_queries, known_answer, gigabytes):
    server = Triton(small_build, *free_ports(3))
    with memory_cgroup(gigabytes * 2**30) as group:
        try:
            result = start_in(group, server)
            assert result.returncode == 0, result.stdout + result.stderr
            answer = Client(server.url, timeout=60).search(known_queries)
            assert is_right(answer, known_answer)
            assert "starting it again" not in server.log
        finally:
            server.stop()


def test_the_largest_batch_of_photos_fits_into_four_gigabytes(small_build):
    server = Triton(small_build, *free_ports(3))
    with memory_cgroup(4 * 2**30) as group:
        try:
            assert start_in(group, server).returncode == 0
            assert embed_photos(server) == 64
        finally:
            server.stop()


def test_a_request_beyond_the_memory_ends_the_server_and_it_comes_back(
    small_build, known_queries, known_answer
):
    server = Triton(small_build, *free_ports(3))
    with memory_cgroup(2 * 2**30) as group:
        try:
            assert start_in(group, server).returncode == 0
            ask_for_four_gigabytes(server)
            wait_until(lambda: "starting it again" in server.log, "a restart", timeout=30)
            wait_for_right_answer(Client(server.url, timeout=5), known_queries, known_answer)
        finally:
            server.stop()


def ask_for_four_gigabytes(server: Triton) -> None:
    """A hundred bytes, for which Triton takes the memory of 10⁹ numbers (doc/faults.md)."""
    pixels = {"name": "INPUT__0", "shape": [64, 3, 2290, 2290], "datatype": "FP32", "data": [0]}
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    with contextlib.suppress(OSError, http.client.HTTPException):
        body = json.dumps({"inputs": [pixels]})
        connection.request("POST", "/v2/models/image_encoder/infer", body)
        connection.getresponse()
    connection.close()


def embed_photos(server: Triton) -> int:
    """Ask for 64 images of 512 by 512 pixels in one request; the number of embeddings."""
    client = tritonclient.http.InferenceServerClient(
        server.url.removeprefix("http://"), network_timeout=120
    )
    pixels = tritonclient.http.InferInput("INPUT__0", [64, 3, 512, 512], "FP32")
    pixels.set_data_from_numpy(np.zeros((64, 3, 512, 512), np.float32))
    return len(client.infer("image_encoder", [pixels]).as_numpy("OUTPUT__0"))


@pytest.mark.parametrize("mode", ["--detach", "--check"])
def test_too_small_a_machine_is_refused_with_what_is_needed_and_found(small_build, mode):
    server = Triton(small_build, *free_ports(3))
    with memory_cgroup(2**30) as group:
        result = start_in(group, server, mode)

    assert result.returncode == 1
    assert "the server needs 1.4 GB of memory; this machine or container has 1.0 GB" in (
        result.stderr
    )


def test_a_limit_on_addresses_does_not_matter(small_build, known_queries, known_answer):
    """`ulimit -v`: torch reserves far more addresses than it uses memory."""
    server = Triton(small_build, *free_ports(3))
    command = ["bash", "-c", 'ulimit -v 8000000; exec "$0" --detach', SCRIPT]
    try:
        result = subprocess.run(
            command, env=script_environment(**server.environment), capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert is_right(Client(server.url, timeout=60).search(known_queries), known_answer)
    finally:
        server.stop()
