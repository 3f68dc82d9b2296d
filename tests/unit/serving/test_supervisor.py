"""The supervisor, with a small program in place of tritonserver; the real one: tests/faults."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from reverse_image_search.serving.supervisor import is_ready
from tests.running import descendants, is_running, wait_until

FAKE_SERVER = Path(__file__).with_name("fake_server.py")
SUPERVISE = textwrap.dedent("""
    import os, signal, sys
    from reverse_image_search.serving.supervisor import LocalServerError, Supervisor
    port, limit, *command = sys.argv[1:]
    supervisor = Supervisor(command, dict(os.environ), int(port), int(limit))
    signal.signal(signal.SIGTERM, lambda *_: supervisor.stop())
    try:
        sys.exit(supervisor.run())
    except LocalServerError as error:
        sys.exit(str(error))
""")


class Supervised:
    """A supervisor of a fake server, in a process of its own."""

    def __init__(self, port: int, log: Path, behavior: str, limit: int) -> None:
        self.port, self._log = port, log
        command = [sys.executable, FAKE_SERVER, str(port), behavior]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISE, str(port), str(limit), *command],
                env=os.environ | {"ONCE": str(log.with_suffix(".once"))},
                stdout=output,
                stderr=output,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture
def supervise(tmp_path, free_port):
    """``supervise(behavior)``: a running supervisor, whose server is READY."""
    started = []

    def start(behavior: str = "", limit: int = 2**33) -> Supervised:
        started.append(Supervised(free_port(), tmp_path / "log", behavior, limit))
        wait_until(lambda: "READY at" in started[-1].log, "READY", timeout=30)
        return started[-1]

    yield start
    for each in started:
        for pid in (*descendants(each.process.pid), each.process.pid):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        each.process.wait()


def test_a_stop_ends_the_server_and_its_models(supervise):
    supervised = supervise()
    family = descendants(supervised.process.pid)
    assert len(family) == 3, "the server and two models"

    assert supervised.stop() == 0

    wait_until(lambda: not any(map(is_running, family)), "all gone", timeout=10)
    assert supervised.log.endswith("tritonserver: stopped\n")


@pytest.mark.parametrize(
    ("behavior", "reason"),
    [
        ("die", "ended with SIGABRT"),
        ("lose-model", "lost the process of a model"),
        ("eat", r"used 0\.\d GB of memory \(its limit: 0\.2 GB\)"),
    ],
)
def test_a_server_is_started_again(supervise, behavior, reason):
    supervised = supervise(behavior, limit=2 * 10**8)

    wait_until(lambda: supervised.log.count("READY at") == 2, "READY again", timeout=30)

    assert re.search(rf"the server {reason}; starting it again in 0\.5 s", supervised.log)
    time.sleep(1)  # the next one is left alone
    assert supervised.log.count("starting it again") == 1


@pytest.mark.parametrize("behavior", ["lose-other", "switch-model"])
def test_other_children_of_the_server_may_end(supervise, behavior):
    """Triton's metrics start programs that look for GPUs; an old version's process ends."""
    supervised = supervise(behavior)

    time.sleep(3)

    assert "starting it again" not in supervised.log


def test_memory_of_the_models_counts(tmp_path, free_port):
    """The server stays small; a child of it, as a model of the Python backend, does not."""
    eat = "import time; data = bytearray(b'x') * 3 * 10**8; time.sleep(60)"
    script = f'"{sys.executable}" -c "{eat}" & wait'
    result = subprocess.run(
        [sys.executable, "-c", SUPERVISE, str(free_port()), str(2 * 10**8), "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode == 1
    assert "given up: the server used 0." in result.stderr
    assert "GB of memory (its limit: 0.2 GB) 3 times before it was ready" in result.stderr


def test_deaths_before_ready_are_given_up(tmp_path, free_port):
    port = str(free_port())
    command = [sys.executable, "-c", SUPERVISE, port, str(2**33)]
    command += [sys.executable, FAKE_SERVER, port, "crash"]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert result.returncode == 1
    assert "given up: the server ended with exit code 3 3 times before it was ready" in (
        result.stderr
    )
    assert re.findall(r"starting it again in (\S+) s", result.stdout) == ["1", "2"]


def test_a_limit_on_addresses_is_named_when_the_server_is_given_up(free_port):
    port = str(free_port())
    command = ["bash", "-c", 'ulimit -v 6291456; exec "$0" "$@"', sys.executable, "-c", SUPERVISE]
    command += [port, str(2**33), sys.executable, FAKE_SERVER, port, "crash"]

    result = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert "ulimit -v limits addresses to 6.0 GB" in result.stderr


def test_the_server_stops_when_nobody_reads_on(free_port):
    """As in `start_inference_server_cpu.sh | head -n 1`, or when a terminal is closed."""
    port = str(free_port())
    command = [sys.executable, "-c", SUPERVISE, port, str(2**33)]
    with subprocess.Popen(
        [*command, sys.executable, FAKE_SERVER, port], stdout=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        family = descendants(process.pid)
        process.stdout.close()

        assert process.wait(30) == 0

    assert not any(map(is_running, family))
    assert not is_ready(int(port))


def test_a_full_disk_under_the_log_does_not_stop_the_server(free_port):
    port = str(free_port())
    with (
        open("/dev/full", "w") as full,
        subprocess.Popen(
            [sys.executable, "-c", SUPERVISE, port, str(2**33), sys.executable, FAKE_SERVER, port],
            stdout=full,
        ) as process,
    ):
        try:
            wait_until(lambda: is_ready(int(port)), "READY", timeout=30)
            time.sleep(0.5)
            assert process.poll() is None
        finally:
            process.terminate()


@pytest.mark.parametrize(("status", "expected"), [(200, True), (400, False), (503, False)])
def test_ready_means_200(status, expected):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert is_ready(server.server_port) is expected
        server.shutdown()


def test_nothing_on_the_port_is_not_ready(free_port):
    assert not is_ready(free_port())


def test_readiness_is_asked_without_a_proxy(monkeypatch, free_port):
    """A proxy that answers 200 to everything must not pass for the server."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        Thread(target=proxy.serve_forever, daemon=True).start()
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        assert not is_ready(free_port())
        proxy.shutdown()
