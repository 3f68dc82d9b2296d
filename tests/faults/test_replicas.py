"""Two replicas behind the balancer of deploy/kubernetes and one Milvus, each killed under load."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image

from reverse_image_search import build_models, contract
from reverse_image_search.client import Client, Neighbors, ServerNotReadyError, connections
from reverse_image_search.gallery import Gallery
from reverse_image_search.indexes import milvus_model
from reverse_image_search.layout import gallery_file
from tests.faults.conftest import QUERIES, is_right, photo, ready_again
from tests.faults.load import Load
from tests.milvus_server import MilvusServer
from tests.running import REPO_ROOT, Triton, answers, open_url, skip_or_fail, wait_until

CONFIGURATION = REPO_ROOT / "reverse_image_search/deploy/kubernetes/base/haproxy.cfg"
TIMEOUT = 10  # seconds; the client's default


class Balancer:
    """HAProxy before the servers at `urls`, with the project's configuration."""

    def __init__(self, port: int, urls: list[str], folder: Path) -> None:
        program = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
        if not program:
            skip_or_fail("there is no haproxy: apt-get install haproxy")
        *lines, template = CONFIGURATION.read_text().splitlines()
        assert "server-template" in template  # looks the replicas up; here they are known
        lines += [f"    server {url.rpartition(':')[2]} {url[7:]}" for url in urls]
        text = "\n".join(lines).replace("bind :8000", f"bind 127.0.0.1:{port}")
        file = folder / "haproxy.cfg"
        file.write_text(text + "\n")
        self.url = f"http://127.0.0.1:{port}"
        self._port, self._command = port, [program, "-db", "-f", file]
        self.start()

    def start(self) -> None:
        """Return when it accepts connections."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(self._listens, "the balancer", 30)

    def kill(self) -> None:
        """End it without warning."""
        self._process.kill()
        self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self._port)) == 0


@pytest.fixture
def balancer(free_port: Callable[[], int], tmp_path: Path) -> Iterator[Callable[..., Balancer]]:
    """``balancer([url, ...])``: a running balancer before these servers."""
    started = []

    def start(urls: list[str]) -> Balancer:
        started.append(Balancer(free_port(), urls, tmp_path))
        return started[-1]

    yield start
    for each in started:
        each.kill()


class NewConnections(Client):
    """Connects anew for every other search, as a page's new thread does."""

    def search(self, images) -> Neighbors:
        if random.random() < 0.5:
            connections.drop(self.url, self.timeout)
        return super().search(images)


def images_embedded(server: Triton) -> int:
    """Images that a server has embedded since it started; 0 while it is down."""
    try:
        with open_url(f"{server.url}/v2/models/image_encoder/stats", timeout=2) as answer:
            return json.load(answer)["model_stats"][0]["inference_count"]
    except OSError:
        return 0


def milvus_finds(output_dir: Path, uri: str) -> bool:
    """Whether Milvus itself can search the collection of a build."""
    collection = Gallery(gallery_file(output_dir)).metadata.build_options["index_name"]
    try:
        client = milvus_model.connect(uri, TIMEOUT)
        vector = np.ones((1, client.describe_collection(collection)["fields"][1]["params"]["dim"]))
        ids, _ = milvus_model.search(client, collection, vector, 1, TIMEOUT)
    except Exception:
        return False
    client.close()
    return ids[0, 0] >= 0


def seconds_until_seen(
    replicas: list[Triton], image: np.ndarray, is_found: bool, *arguments: str
) -> float:
    """Update the build of the replicas: seconds from publishing until all (don't) find an image."""
    output_dir = replicas[0].output_dir
    published = gallery_file(output_dir).stat().st_ino

    def when(condition: Callable[[], bool]) -> float:
        wait_until(condition, " ".join(arguments), 60)
        return time.monotonic()

    def is_seen(replica: Triton) -> bool:
        return (Client(replica.url).search([image]).scores[0, 0] > 0.999) == is_found

    with ThreadPoolExecutor() as threads:
        start = threads.submit(when, lambda: gallery_file(output_dir).stat().st_ino != published)
        ends = [threads.submit(when, lambda r=replica: is_seen(r)) for replica in replicas]
        assert build_models.main([*arguments, "--output-dir", str(output_dir)]) == 0
        return max(0.0, max(end.result() for end in ends) - start.result())


def test_each_part_killed_under_load(
    photos: Path, milvus: MilvusServer, start_triton, balancer, tmp_path, tally, figure
):
    """A replica is not missed, Milvus and a single balancer are; no answer is wrong."""
    replicas = [start_triton(tmp_path) for _ in range(2)]
    haproxy = balancer([replica.url for replica in replicas])
    images = [np.array(Image.open(photos / f"{seed}.png")) for seed in range(QUERIES)]
    new = photo(100, tmp_path)
    new_image = np.array(Image.open(new))
    client = NewConnections(haproxy.url, timeout=TIMEOUT)
    known = client.search(images)
    similarities = client.embed(images) @ client.embed([new_image]).T
    scores = np.sort(np.hstack([known.scores[:, :-1], similarities]))[:, ::-1]
    known_with_new = Neighbors(known.ids, scores)  # of the ids, is_right compares the first

    def share_again(replica: Triton) -> float:
        wait_until(lambda: images_embedded(replica) > 0, "its share of the load", 30)
        failed, before, start = load.errors.total(), load.answers, time.monotonic()
        os.kill(replica.server_pid, signal.SIGKILL)
        wait_until(lambda: load.answers > before + 8, "answers of the other one", 15)
        wait_until(lambda: images_embedded(replica) > 0, "its share again", 60)
        assert load.errors.total() == failed  # the balancer or the client asks the other one again
        return time.monotonic() - start

    def kill_milvus() -> float:
        failed, start = load.errors.total(), time.monotonic()
        milvus.kill()
        wait_until(lambda: load.errors.total() > failed + 8, "failures")
        milvus.start()
        wait_until(lambda: milvus_finds(tmp_path, milvus.uri), "Milvus")
        figure(f"Milvus itself searches {time.monotonic() - start:.1f} s after it was killed")
        return right_after(time.monotonic())

    def kill_balancer() -> float:
        start = time.monotonic()
        haproxy.kill()
        haproxy.start()
        return right_after(start)

    def right_after(start: float) -> float:
        def is_steady() -> bool:
            return load.answers > before + 8 and time.monotonic() - load.last_error > 1.5

        before = load.answers
        wait_until(is_steady, "answers again")
        return max(0.0, load.last_error - start)

    with Load(client, images, known, pause=0.05) as load:
        row = tally("one Milvus, two replicas: images come and go")
        with row.case("added"):
            load.known = (known, known_with_new)
            seconds = [seconds_until_seen(replicas, new_image, True, "--add", str(new))]
            load.known = (known_with_new,)
        with row.case("removed"):
            load.known = (known, known_with_new)
            seconds.append(seconds_until_seen(replicas, new_image, False, "--remove", str(new)))
            load.known = (known,)
            assert max(seconds) <= ready_again() / 3  # on an idle machine it takes 0.1
            versions = [
                Client(replica.url).model_metadata(contract.VECTOR_SIMILARITY.name)["versions"]
                for replica in replicas
            ]
            assert versions == [["1"], ["1"]]
        row.note = f"both replicas see it {seconds[0]:.1f} and {seconds[1]:.1f} s after publishing"
        for killed, kill, since in (
            ("replica 1", lambda: share_again(replicas[0]), "both answer again after"),
            ("replica 2", lambda: share_again(replicas[1]), "both answer again after"),
            ("Milvus", kill_milvus, "right again, after Milvus itself,"),
            ("balancer", kill_balancer, "right again after"),
        ):
            row = tally(f"one Milvus, two replicas: {killed} killed")
            right, failed, wrong = load.answers, load.errors.total(), len(load.wrong)
            load.longest_error, seconds = 0.0, math.nan
            with row.case("killed"):
                seconds = kill()
                assert seconds <= ready_again()
                assert load.longest_error < TIMEOUT
            row.note = (
                f"{load.answers - right} right answers, {len(load.wrong) - wrong} wrong, "
                f"{load.errors.total() - failed} failed ({load.longest_error:.1f} s at most); "
                f"{since} {seconds:.1f} s"
            )
    assert not load.wrong
    assert not any("Traceback" in replica.log for replica in replicas)
    for message in load.errors:
        assert f"Milvus at {milvus.uri}" in message or "is not reachable" in message


def test_only_what_a_search_needs_passes_the_balancer(balancer, triton, known_queries, client):
    url = balancer([triton.url]).url
    wait_until(lambda: answers(f"{url}/balancer/ready"), "a replica", 30)
    assert is_right(Client(url).search(known_queries), client.search(known_queries))
    for path in ("/v2/repository/index", "/v2/systemsharedmemory/status", "/v2/logging"):
        with pytest.raises(HTTPError, match="403"):
            open_url(url + path, timeout=5)


def test_without_a_replica_the_client_says_so(balancer, free_port, known_queries):
    url = balancer([f"http://127.0.0.1:{free_port()}"]).url
    wait_until(lambda: not answers(f"{url}/balancer/ready"), "the check of the replica", 30)
    with pytest.raises(ServerNotReadyError, match="no replica of Triton is ready"):
        Client(url).search(known_queries)
