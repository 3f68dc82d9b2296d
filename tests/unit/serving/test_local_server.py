"""The run file of the local server; the whole of it: tests/integration, tests/scripts."""

import os
import subprocess
import sys

import pytest

from reverse_image_search.serving.local_server import run_lock, running_pid
from reverse_image_search.serving.supervisor import LocalServerError
from tests.running import REPO_ROOT


def test_a_run_file_counts_only_while_its_holder_lives(tmp_path):
    run_file = tmp_path / "8000.pid"
    assert running_pid(run_file) is None

    with run_lock(run_file) as lock:
        assert running_pid(run_file) is None  # being started, by no supervisor yet
        print(os.getpid(), file=lock, flush=True)
        assert running_pid(run_file) == os.getpid()
        with pytest.raises(LocalServerError, match="another server is being started"):
            run_lock(run_file).__enter__()

    # What a killed supervisor leaves: the file with its id, and no lock.
    assert run_file.read_text().strip() == str(os.getpid())
    assert running_pid(run_file) is None


def test_a_supervisor_that_is_being_started_is_waited_for(tmp_path):
    """`--stop` right after a start: the lock is held, the id not written yet."""
    run_file = tmp_path / "8000.pid"
    code = (
        "import os, sys, time, pathlib; from reverse_image_search.serving.local_server import *\n"
        "with run_lock(pathlib.Path(sys.argv[1])) as lock:\n"
        "    print('locked', flush=True); time.sleep(1)\n"
        "    print(os.getpid(), file=lock, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, run_file],
        cwd=REPO_ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.readline()
        assert running_pid(run_file) is None
        assert running_pid(run_file, timeout=30) == process.pid


def test_a_lock_is_handed_on(tmp_path):
    """To the supervisor in the background: the file stays locked when its starter is done."""
    run_file = tmp_path / "8000.pid"
    with run_lock(run_file) as lock:
        supervisor = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
    with supervisor:
        with pytest.raises(LocalServerError, match="another server is being started"):
            run_lock(run_file).__enter__()
        supervisor.stdin.close()

    with run_lock(run_file) as lock, run_lock(run_file, os.dup(lock.fileno())):
        pass  # the one that the lock was handed to may take it again


def run_local_server(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-I", "-m", "reverse_image_search.serving.local_server",
         "--model-repository", "nowhere", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip


def test_the_second_of_two_starts_leaves_the_log_of_the_first_alone(free_port):
    ports = [str(free_port()) for _ in range(3)]
    run_file = REPO_ROOT / ".triton" / "run" / f"{ports[0]}.pid"
    log_file = run_file.with_suffix(".log")
    options = zip(("--http-port", "--grpc-port", "--metrics-port"), ports, strict=True)
    arguments = [word for option in options for word in option]
    try:
        with run_lock(run_file):
            log_file.write_text("log of the first")
            result = run_local_server(*arguments, "--detach")

        assert result.returncode == 1
        # pip may say something of its own before.
        reason = "tritonserver: another server is being started on the same port"
        assert result.stderr.splitlines()[-1] == reason
        assert log_file.read_text() == "log of the first"
    finally:
        run_file.unlink()
        log_file.unlink()
