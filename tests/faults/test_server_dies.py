"""Server, models' processes and supervisor killed: nobody gets a wrong answer, all come back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from reverse_image_search import contract
from reverse_image_search.client import Client, ServerTimeoutError
from tests.faults.conftest import (
    model_processes_of,
    processes_of,
    ready_again,
    servers_of,
    wait_for_right_answer,
)
from tests.faults.load import Load
from tests.running import REPO_ROOT, Triton, wait_until

ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "1"))
START_COMMAND = "reverse_image_search/bin/start_inference_server_cpu.sh"


def test_killed_under_load(victim: Triton, known_queries, known_answer, tally):
    """SIGKILL for the server, then for each model's process. Shared memory is cleaned up."""
    client = Client(victim.url, timeout=5)
    row = tally("server and models killed under load")
    slowest = 0.0
    # Triton's Python backend makes one for each model; who is killed cannot remove it.
    regions = f"reverse_image_search_{victim.http_port}_*"
    with Load(client, known_queries, known_answer) as load:
        for _ in range(ROUNDS):
            for who in ("server", *(model.name for model in contract.MODELS)):
                with row.case(who):
                    targets = model_processes_of(victim)
                    (targets["server"],) = servers_of(victim)
                    before = processes_of(victim)
                    os.kill(targets[who], signal.SIGKILL)
                    start = time.monotonic()
                    wait_until(lambda b=before: not b & processes_of(victim), "old ones gone", 10)
                    wait_for_right_answer(client, known_queries, known_answer)
                    seconds = time.monotonic() - start
                    slowest = max(slowest, seconds)
                    assert seconds <= ready_again()
                    assert len(list(Path("/dev/shm").glob(regions))) == len(contract.MODELS)
    row.note = (
        f"{load.answers} right answers, {load.errors.total()} errors, {len(load.wrong)} wrong; "
        f"right again after at most {slowest:.1f} s"
    )
    assert not load.wrong
    assert load.errors.total() > 0, "nobody noticed"
    for message in load.errors:
        assert victim.url in message
        assert START_COMMAND in message or "did not answer" in message or "Stub" in message, message


def test_the_page_rides_it_out(victim: Triton, known_queries, known_answer, monkeypatch, tally):
    """The same page says what is wrong while the server is down, and shows results afterwards."""
    row = tally("the app's page while the server is dead")
    monkeypatch.setenv("TRITON_URL", victim.url)
    monkeypatch.setenv("OUTPUT_DIR", str(victim.output_dir))
    page = AppTest.from_file(
        REPO_ROOT / "reverse_image_search" / "app" / "page.py", default_timeout=60
    )

    def shows_results() -> bool:
        page.run()
        return not page.error

    for _ in range(ROUNDS):
        with row.case("killed"):
            wait_until(shows_results, "results", ready_again())
            os.kill(victim.server_pid, signal.SIGKILL)
            page.run()
            assert START_COMMAND in " ".join(error.value for error in page.error)
            assert not page.exception
            wait_for_right_answer(Client(victim.url), known_queries, known_answer)
            wait_until(shows_results, "results again", ready_again())
            assert not page.exception


def test_a_server_that_hangs_is_started_again(victim, known_queries, known_answer, tally):
    """Stopped by SIGSTOP it lives, but answers nobody."""
    row = tally("server that hangs")
    client = Client(victim.url, timeout=1)
    with row.case("SIGSTOP"):
        wait_until_watched(victim)
        os.kill(victim.server_pid, signal.SIGSTOP)
        with pytest.raises(ServerTimeoutError, match="did not answer within 1 s"):
            client.search(known_queries)
        wait_for_right_answer(client, known_queries, known_answer, grace=15)
        assert "was not READY for 1" in victim.log


def test_one_log_line_for_each_event(start_triton, small_build, tally):
    """Start, READY, death and stop; also what is left when the supervisor itself is killed."""
    row = tally("supervisor, and what it logs")
    server = start_triton(small_build)
    wait_until_watched(server)
    os.kill(server.server_pid, signal.SIGKILL)
    wait_until(lambda: server.log.count("READY at") == 2, "READY again", 60)
    with row.case("the log of a death"):
        start = f"starting .*tritonserver on port {server.http_port}"
        ready = rf"READY at {server.url} after \d+\.\d s; Ctrl-C stops it"
        death = r"the server ended with SIGKILL; starting it again in 0\.5 s"
        check_log(server, [start, ready, death, start, ready])
    with row.case("supervisor killed: the server goes with it"):
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not processes_of(server), "server and models gone", 30)
        result = server.start()
        assert result.returncode == 0, result.stdout + result.stderr
    with row.case("both killed at once: the models go with them"):
        # As the kernel does when memory runs out.
        os.kill(server.pid, signal.SIGKILL)
        for pid in servers_of(server):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not processes_of(server), "models' processes gone", 60)
        result = server.start()
        assert result.returncode == 0, result.stdout + result.stderr
    with row.case("the log of a stop"):
        wait_until_watched(server)
        assert server.stop().returncode == 0
        check_log(server, [start, ready, "stopped"])


def wait_until_watched(server: Triton) -> None:
    """Wait for the supervisor, who may notice later than others that the server answers."""
    wait_until(lambda: "READY at" in server.log.rpartition(" starting /")[2], "READY", 60)


def check_log(server: Triton, expected: list[str]) -> None:
    """The supervisor's lines in the log, in order, as regular expressions."""
    clock = r"\d\d:\d\d:\d\d tritonserver: "
    lines = [line for line in server.log.splitlines() if re.match(clock, line)]
    assert len(lines) == len(expected), lines
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(clock + pattern, line)


def test_deaths_at_start_are_given_up(build_copy: Path, free_port, tally):
    """A model that cannot be loaded: three attempts, each later than the last, and a reason."""
    row = tally("server that dies at each start")
    model = build_copy / "model_repo" / contract.IMAGE_ENCODER.name / "1" / "model.pt"
    model.write_bytes(b"no model")
    command = [
        *(sys.executable, "-m", "reverse_image_search.serving.local_server"),
        *("--model-repository", build_copy / "model_repo"),
        *("--http-port", free_port(), "--grpc-port", free_port(), "--metrics-port", free_port()),
    ]
    with row.case("a model.pt that is none"):
        result = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 1
        assert "given up: the server ended with exit code 1 3 times" in result.stderr
        assert re.findall(r"starting it again in (\S+) s", result.stdout) == ["1", "2"]
        assert contract.IMAGE_ENCODER.name in result.stdout + result.stderr
