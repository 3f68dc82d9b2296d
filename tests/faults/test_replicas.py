"""Two replicas behind the balancer of deploy/kubernetes: each killed in turn, under load."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError

import pytest

from reverse_image_search.client import Client, Neighbors, ServerNotReadyError, connections
from tests.faults.conftest import READY_AGAIN, is_right
from tests.faults.load import Load
from tests.running import REPO_ROOT, Triton, answers, open_url, skip_or_fail, wait_until

CONFIGURATION = REPO_ROOT / "reverse_image_search/deploy/kubernetes/base/haproxy.cfg"


@pytest.fixture
def balancer(free_port: Callable[[], int], tmp_path: Path) -> Iterator[Callable[..., str]]:
    """``balancer([url, ...])``: start the balancer before these servers; returns its own URL."""
    program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        skip_or_fail("there is no haproxy: apt-get install haproxy")
    started = []

    def start(urls: list[str]) -> str:
        port, file = free_port(), tmp_path / "haproxy.cfg"
        *lines, template = CONFIGURATION.read_text().splitlines()
        assert "server-template" in template  # looks the replicas up; here they are known
        lines += [f"    server {url.rpartition(':')[2]} {url[7:]}" for url in urls]
        text = "\n".join(lines).replace("bind :8000", f"bind 127.0.0.1:{port}")
        file.write_text(text + "\n")
        started.append(subprocess.Popen([program, "-db", "-f", file], stdout=subprocess.DEVNULL))
        wait_until(lambda: _listens(port), "the balancer", 30)
        return f"http://127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait(30)


class NewConnections(Client):
    """Connects anew for every other search, as a page's new thread does."""

    def search(self, images) -> Neighbors:
        if random.random() < 0.5:
            connections.drop(self.url, self.timeout)
        return super().search(images)


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def images_embedded(server: Triton) -> int:
    """Images that a server has embedded since it started; 0 while it is down."""
    try:
        with open_url(f"{server.url}/v2/models/image_encoder/stats", timeout=2) as answer:
            return json.load(answer)["model_stats"][0]["inference_count"]
    except OSError:
        return 0


def test_each_replica_killed_under_load(
    triton, start_triton, balancer, small_build, known_queries, client, tally
):
    """No request fails: the balancer or the client asks the other replica again."""
    replicas = [triton, start_triton(small_build)]
    url = balancer([replica.url for replica in replicas])
    known = client.search(known_queries)
    row = tally("one of two replicas killed under load")
    seconds = []
    with Load(NewConnections(url, timeout=5), known_queries, known, threads=4) as load:
        for replica in replicas:
            with row.case("killed"):
                wait_until(lambda r=replica: images_embedded(r) > 0, "its share of the load", 30)
                os.kill(replica.server_pid, signal.SIGKILL)
                start, before = time.monotonic(), load.answers
                wait_until(lambda b=before: load.answers > b + 8, "answers of the other one", 15)
                wait_until(lambda r=replica: images_embedded(r) > 0, "its share again", 60)
                seconds.append(time.monotonic() - start)
                assert seconds[-1] <= READY_AGAIN
    row.note = (
        f"{load.answers} right answers, {load.errors.total()} errors, {len(load.wrong)} wrong; "
        f"both answer again after at most {max(seconds):.1f} s"
    )
    assert not load.wrong
    assert not load.errors


def test_only_what_a_search_needs_passes_the_balancer(balancer, triton, known_queries, client):
    url = balancer([triton.url])
    wait_until(lambda: answers(f"{url}/balancer/ready"), "a replica", 30)
    assert is_right(Client(url).search(known_queries), client.search(known_queries))
    for path in ("/v2/repository/index", "/v2/systemsharedmemory/status", "/v2/logging"):
        with pytest.raises(HTTPError, match="403"):
            open_url(url + path, timeout=5)


def test_without_a_replica_the_client_says_so(balancer, free_port, known_queries):
    url = balancer([f"http://127.0.0.1:{free_port()}"])
    wait_until(lambda: not answers(f"{url}/balancer/ready"), "the check of the replica", 30)
    with pytest.raises(ServerNotReadyError, match="no replica of Triton is ready"):
        Client(url).search(known_queries)
