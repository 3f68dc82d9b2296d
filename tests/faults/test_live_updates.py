"""A gallery that changes while it is served: nobody is refused, and nobody sees an old answer."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tritonclient import grpc as grpc_client

from reverse_image_search import contract, layout
from reverse_image_search.benchmark.live_updates import Load, run_updates
from reverse_image_search.benchmark.updated_build import UpdatedBuild
from reverse_image_search.client import Client
from reverse_image_search.gallery import Gallery
from reverse_image_search.serving.file_system import PublishingError
from reverse_image_search.serving.live import wait_until_served
from reverse_image_search.serving.publishing import staging_update
from tests.faults.conftest import model_processes_of, ready_again
from tests.running import Triton, run_script, wait_until

UPDATES = int(os.environ.get("FAULTS_UPDATES", "6"))
CLIENTS = 16
INDEX = contract.VECTOR_SIMILARITY.name


@pytest.fixture
def build(tmp_path: Path) -> UpdatedBuild:
    """A synthetic build of 2,000 images, whose right answers are known."""
    return UpdatedBuild(tmp_path / "build", image_count=2000)


@pytest.fixture
def server(build: UpdatedBuild, start_triton) -> Triton:
    """A server of `build`."""
    return start_triton(build.output_dir, "--ensemble")


def shared_memory_of(server: Triton) -> list[Path]:
    return list(Path("/dev/shm").glob(f"reverse_image_search_{server.http_port}_*"))


def served_version(server: Triton) -> list[str]:
    return Client(server.url).model_metadata(INDEX)["versions"]


def finds_all(server: Triton, build: UpdatedBuild, ids: list[int]) -> bool:
    """Whether each image with one of `ids` finds itself first."""
    client = Client(server.url, timeout=30)
    return all(client.search([build.images[each]]).ids[0, 0] == each for each in ids)


def test_updates_under_load(build, server: Triton, tally, figure):
    """Images come and go while clients search, and some of them as the page does."""
    row = tally("index updated under load")
    with row.case(f"{UPDATES} updates, {CLIENTS} clients"):
        report = run_updates(build, server.url, UPDATES, CLIENTS)
        report.print()
        assert not report.problems
        assert report.answers > UPDATES * CLIENTS
        assert report.processes == 1 + len(contract.MODELS), "an old version is still loaded"
        assert len(shared_memory_of(server)) == len(contract.MODELS)
        assert "starting it again" not in server.log
    grpc = grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
    with row.case("the last version over gRPC"), grpc:
        assert grpc.get_model_metadata(INDEX).versions == [str(UPDATES + 1)]
    row.note = f"{report.answers} right answers"
    figure(f"update under load of {CLIENTS} clients: {max(report.take_over):.1f} s at most")


def test_a_build_with_another_encoder_and_back(build, server: Triton, tally):
    """While the server has the encoder of one build and the index of the other, it is said."""
    row = tally("build replaced under load, and rolled back")
    with Load(build, server.url, clients=4, like_the_page=True) as load:
        with row.case("another build"):
            build.rebuild()
            assert wait_until_served(build.output_dir, server.url) is not None
            build.took_effect()
            assert finds_all(server, build, [0, 1, 2])
        with row.case("--previous"):
            build.returned_to(0)
            result = run_script("start_inference_server_cpu.sh", "--previous", **server.environment)
            assert result.returncode == 0, result.stderr
            assert "took it over" in result.stdout
            build.took_effect()
        answers = load.answers
        with row.case("answers go on"):
            wait_until(lambda: load.answers > answers + 20, "answers", 30)
    assert not load.problems
    row.note = f"{load.answers} right answers, {load.refused} times refused to show a wrong one"


def test_updates_while_the_server_is_not_there(build, server: Triton, tally):
    """It dies at once, it starts, it is stopped: the newest version is served in the end."""
    row = tally("index updated while the server dies or starts")
    with row.case("the server dies as soon as the version is published"):
        added, _ = build.update(add=3, remove=3)
        os.kill(server.server_pid, signal.SIGKILL)
        assert wait_until_served(build.output_dir, server.url) is not None
        assert finds_all(server, build, added)
        assert served_version(server) == ["2"]
    with row.case("the process of the old version dies while the new one is loaded"):
        added, _ = build.update(add=3, remove=3)
        os.kill(model_processes_of(server)[INDEX], signal.SIGKILL)
        wait_until(lambda: _answers(server, build, added), "the new version", 15 + ready_again())
    assert server.stop().returncode == 0
    with row.case("without a server, nobody is waited for"):
        added, _ = build.update(add=3, remove=3)
        start = time.monotonic()
        assert wait_until_served(build.output_dir, server.url) is None
        assert time.monotonic() - start < 5
    with row.case("a start serves the newest"):
        assert server.start().returncode == 0
        assert finds_all(server, build, added)
        assert served_version(server) == ["4"]


def _answers(server: Triton, build: UpdatedBuild, ids: list[int]) -> bool:
    try:
        return finds_all(server, build, ids)
    except Exception:
        return False


def test_a_version_that_cannot_be_loaded_is_not_served(build, server: Triton, tally):
    """The one before is served on, and the next one is taken over."""
    row = tally("damaged version of the index")
    with row.case("damaged"):
        with staging_update(build.output_dir) as folder:
            version = layout.version_folder(folder / layout.MODEL_REPO, INDEX)
            version.mkdir()
            (version / layout.MODEL_FILENAME).write_text("damaged")
        wait_until(lambda: "failed to load" in server.log, "an attempt", 60)
        assert finds_all(server, build, [0, 1])
        assert Client(server.url).is_ready()
    with row.case("the next one"):
        added, _ = build.update(add=3, remove=0)
        assert wait_until_served(build.output_dir, server.url) is not None
        assert finds_all(server, build, added)
        assert "starting it again" not in server.log


def test_two_updates_at_once(build, tally):
    """One wins; the other says so, and leaves no trace."""
    row = tally("two updates at once")
    with (
        row.case("second"),
        staging_update(build.output_dir),
        pytest.raises(PublishingError, match=f"Another build is writing to {build.output_dir}"),
    ):
        build.update(add=1, remove=0)
    assert len(Gallery(layout.gallery_file(build.output_dir))) == 2000
