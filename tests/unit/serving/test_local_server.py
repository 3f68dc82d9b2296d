"""Parts of the local runtime that need no server; the whole: tests/integration, tests/scripts."""

import argparse
import fcntl
import os
import platform
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from reverse_image_search.serving import local_server
from reverse_image_search.serving.local_server import LocalServerError

LOG = """\
I1 server.cc:630]
+----------+------+
| Backend  | Path |
+----------+------+
| pytorch  | /x   |
+----------+------+

I1 server.cc:674]
+-------------------+---------+--------+
| Model             | Version | Status |
+-------------------+---------+--------+
| image_encoder     | 1       | {}     |
| vector_similarity | 1       | READY  |
+-------------------+---------+--------+

I1 grpc_server.cc:2558] "Started"
"""


def test_the_last_table_of_models_is_shown():
    """After a restart the log has one table for each start."""
    table = local_server._model_table(LOG.format("UNAVAILABLE") + LOG.format("READY"))

    lines = table.splitlines()
    assert len(lines) == 6
    assert lines[0] == lines[-1] == "+-------------------+---------+--------+"
    assert "image_encoder     | 1       | READY" in table
    assert "UNAVAILABLE" not in table
    assert local_server._model_table("no table") == ""


def test_deaths_are_named():
    assert local_server._exit_name(1) == "exit code 1"
    assert local_server._exit_name(-6) == "SIGABRT"


@pytest.mark.parametrize(
    ("function", "answer", "message"),
    [
        ("system", "Darwin", "needs Linux on x86_64, this is Darwin on x86_64"),
        ("machine", "aarch64", "needs Linux on x86_64, this is Linux on aarch64"),
        ("libc_ver", ("glibc", "2.31"), "glibc 2.35 or newer, this is glibc 2.31"),
        ("libc_ver", ("", ""), "glibc 2.35 or newer, this is another libc"),
    ],
)
def test_unsupported_platforms_are_sent_to_docker(monkeypatch, function, answer, message):
    monkeypatch.setattr(platform, function, lambda: answer)

    with pytest.raises(LocalServerError, match=f"{message}.*\\s+Install Docker"):
        local_server._check_platform()


def test_glibc_is_compared_by_number_not_by_letters(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.100"))
    local_server._check_platform()


def test_a_run_file_counts_only_while_its_holder_lives(tmp_path):
    run_file = tmp_path / "8000.pid"
    assert local_server._running_pid(run_file) is None

    with local_server._run_lock(run_file) as lock:
        assert local_server._running_pid(run_file) is None  # being started, by no supervisor yet
        print(os.getpid(), file=lock, flush=True)
        assert local_server._running_pid(run_file) == os.getpid()
        with (
            pytest.raises(LocalServerError, match="another server is being started"),
            local_server._run_lock(run_file),
        ):
            pass

    # What a killed supervisor leaves: the file with its id, and no lock.
    assert run_file.read_text().strip() == str(os.getpid())
    assert local_server._running_pid(run_file) is None


def test_a_lock_is_handed_on(tmp_path):
    """To the supervisor in the background: the file stays locked when its starter is done."""
    run_file = tmp_path / "8000.pid"
    with local_server._run_lock(run_file) as lock:
        supervisor = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
    with supervisor:
        with (
            pytest.raises(LocalServerError, match="another server is being started"),
            local_server._run_lock(run_file),
        ):
            pass
        supervisor.stdin.close()

    with (
        local_server._run_lock(run_file) as lock,
        local_server._run_lock(run_file, os.dup(lock.fileno())),
    ):
        pass  # the one that the lock was handed to may take it again


def test_the_second_of_two_starts_leaves_the_log_of_the_first_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local_server, "_HOME", tmp_path)
    monkeypatch.setattr(local_server, "_server_command", lambda _options: ([], {}))
    ports = ["--http-port", "8000", "--grpc-port", "8001", "--metrics-port", "8002"]
    arguments = ["--model-repository", "x", "--wheel", "y==1", *ports, "--detach"]
    monkeypatch.setattr(sys, "argv", ["local_server.py", *arguments])

    with local_server._run_lock(tmp_path / "run" / "8000.pid"):
        log_file = tmp_path / "run" / "8000.log"
        log_file.write_text("log of the first")
        assert local_server.main() == 1

    assert capsys.readouterr().err == (
        "tritonserver: another server is being started on the same port\n"
    )
    assert log_file.read_text() == "log of the first"


def test_a_lock_ends_with_its_process(tmp_path):
    run_file = tmp_path / "8000.pid"
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); f.close()"
    subprocess.run([sys.executable, "-c", code, run_file], check=True)

    with run_file.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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
        assert local_server.is_ready(server.server_port) is expected
        server.shutdown()


def test_nothing_on_the_port_is_not_ready(free_port):
    assert not local_server.is_ready(free_port())


def test_a_model_that_dies_as_the_server_becomes_ready_is_missed(monkeypatch):
    """The server's two children stand for the models' processes; one ends just before READY."""
    server = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"], process_group=0)
    checks_with_both = 0

    def ready_after_a_death(_port):
        nonlocal checks_with_both
        children = local_server._children(server.pid)
        checks_with_both += len(children) == 2
        if checks_with_both < 2:  # the supervisor has yet to see both
            return False
        os.kill(children.pop(), signal.SIGKILL)
        return True

    monkeypatch.setattr(local_server, "is_ready", ready_after_a_death)
    supervisor = local_server.Supervisor([], {}, argparse.Namespace(http_port=0, gpu=False))
    try:
        assert supervisor._watch(server) == (True, "lost the process of a model")
    finally:
        local_server._end(server)


def test_a_living_model_that_is_not_listed_is_not_missed(monkeypatch):
    """The kernel's list of a process's children lacks one now and then."""
    server = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], process_group=0)
    supervisor = local_server.Supervisor([], {}, argparse.Namespace(http_port=0, gpu=False))
    lists = []

    def children(pid: int) -> set[int]:
        found = _children(pid) if len(lists) < 5 else set()
        lists.append(found)
        supervisor._stopping = len(lists) == 10
        return found

    _children = local_server._children
    monkeypatch.setattr(local_server, "_children", children)
    monkeypatch.setattr(local_server, "is_ready", lambda _port: any(lists))
    try:
        assert supervisor._watch(server) == (True, "was told to stop")
        assert any(lists)
        assert not any(lists[5:])
    finally:
        local_server._end(server)


def test_a_copy_is_made_when_something_changed(tmp_path):
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_text("one")
    local_server._copy_if_changed(source, target)
    first = target.stat().st_ino
    local_server._copy_if_changed(source, target)
    assert target.stat().st_ino == first

    source.write_text("two")
    local_server._copy_if_changed(source, target)
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["target"]
