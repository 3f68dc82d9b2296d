"""Run NVIDIA's tritonserver from PyPI, without Docker: start, detach and stop it.

The server of that wheel (2.51.0) has known critical vulnerabilities and dies of some malformed
requests, so it listens on 127.0.0.1 only, and a supervisor starts it again when it dies.

Only the standard library; the `start_inference_server_*.sh` scripts are its front.
"""

import argparse
import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from reverse_image_search.layout import STOP_COMMAND
from reverse_image_search.serving.memory import memory_limit, missing_memory
from reverse_image_search.serving.supervisor import (
    ADDRESS,
    POLL,
    STOP_TIMEOUT,
    LocalServerError,
    Supervisor,
    is_dead,
    is_ready,
)
from reverse_image_search.serving.tritonserver_wheel import (
    check_platform,
    pinned_wheel,
    server_command,
    state_folder,
)

_MEMORY_SHARE = 0.75  # of the machine's or container's, for the server and its models
_NEEDED_MEMORY = 1_500_000_000  # bytes; in 1 GB, the default build is READY but cannot answer


def main() -> int | str:
    """Start, detach or stop the local server; returns the exit code, or what went wrong."""
    options = _parse()
    port = options.http_port
    try:
        pid_file = run_file(port)
        if options.stop:
            return _stop(pid_file, port)
        check_platform()
        if missing := missing_memory(_NEEDED_MEMORY, "the server"):
            raise LocalServerError(missing)
        if pid := running_pid(pid_file):
            raise LocalServerError(
                f"a server of this project already runs on port {port} (process {pid}). "
                f"Stop it with {STOP_COMMAND}"
            )
        command, environment = server_command(options)
        if options.check:
            return 0
        with run_lock(pid_file, options.lock_fd) as lock:
            if options.detach:
                return _detach(pid_file, lock, port)
            print(os.getpid(), file=lock, flush=True)
            limit = int(_MEMORY_SHARE * memory_limit())
            supervisor = Supervisor(command, environment, port, limit)
            _on_stop_signal(supervisor.stop)
            return supervisor.run()
    except LocalServerError as error:
        return f"tritonserver: {error}"
    except OSError as error:
        return f"tritonserver: {error.filename}: {error.strerror}"


def _on_stop_signal(stop: Callable[[], object]) -> None:
    for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # nohup(1) has a hang-up ignored, and it stays so.
        if signal.getsignal(signal_number) != signal.SIG_IGN:
            signal.signal(signal_number, lambda *_: stop())


def run_file(http_port: int) -> Path:
    """Where the server on `http_port` writes its process id; locked as long as it runs."""
    return state_folder() / "run" / f"{http_port}.pid"


@contextlib.contextmanager
def run_lock(run_file: Path, inherited_fd: int | None = None) -> Iterator[TextIO]:
    """Hold `run_file`, emptied, as long as the server runs; the supervisor writes its id there.

    The lock belongs to the open file: `_detach` hands it on as `inherited_fd`, so that of two
    starts at the same moment one is refused before it touches the log of the other.
    """
    run_file.parent.mkdir(parents=True, exist_ok=True)
    with open(run_file if inherited_fd is None else inherited_fd, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LocalServerError("another server is being started on the same port") from None
        file.truncate(0)
        yield file


def running_pid(run_file: Path, timeout: float = 0) -> int | None:
    """Process id of the supervisor that holds `run_file`, if one does.

    One that is being started has not written its id yet: it gets `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            with run_file.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except FileNotFoundError:
            return None
        except BlockingIOError:
            pid = int(run_file.read_text() or 0)
        if pid or time.monotonic() > deadline:
            return pid or None
        time.sleep(POLL)


def served_repository(http_port: int) -> Path | None:
    """The model repository of the server that runs, or is being restarted, on `http_port`."""
    with contextlib.suppress(LocalServerError, OSError, ValueError):
        if pid := running_pid(run_file(http_port)):
            process = Path(f"/proc/{pid}")
            arguments = (process / "cmdline").read_bytes().split(b"\0")
            named = arguments[arguments.index(b"--model-repository") + 1]
            return (process / "cwd" / os.fsdecode(named)).resolve()
    return None


def _detach(run_file: Path, lock: TextIO, http_port: int) -> int:
    """Start a supervisor in the background and wait until its server is ready."""
    log_file = run_file.with_suffix(".log")
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    stops: list[None] = []
    _on_stop_signal(lambda: stops.append(None))
    with log_file.open("w") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-m", "reverse_image_search.serving.local_server",
             *arguments, f"--lock-fd={lock.fileno()}"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            pass_fds=[lock.fileno()],
        )  # fmt: skip
    while not is_ready(http_port):
        if stops:
            supervisor.terminate()
            supervisor.wait()
            return 130
        if supervisor.poll() is not None:
            sys.stderr.write(log_file.read_text())
            return 1
        time.sleep(POLL)
    # The models and their status: the last table of them in the log.
    for table in re.findall(r"^\+.*\n\| Model .*\n(?:[+|].*\n)*", log_file.read_text(), re.M)[-1:]:
        print(table, end="")
    print(f"READY at http://{ADDRESS}:{http_port}; log: {log_file}")
    return 0


def _stop(run_file: Path, http_port: int) -> int:
    if (pid := running_pid(run_file, timeout=STOP_TIMEOUT)) is None:
        print(f"No server of this project runs on port {http_port}.")
        return 0
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        raise LocalServerError(f"process {pid} belongs to another user, who can stop it") from None
    deadline = time.monotonic() + 2 * STOP_TIMEOUT
    while not is_dead(pid):
        if time.monotonic() > deadline:
            raise LocalServerError(f"process {pid} does not stop. End it with kill -9 {pid}")
        time.sleep(POLL)
    print(f"Stopped the server on port {http_port}.")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model-repository", type=Path, action="append", required=True)
    parser.add_argument("--wheel", default=pinned_wheel(), help="requirement of the PyPI wheel")
    for port in ("--http-port", "--grpc-port", "--metrics-port"):
        parser.add_argument(port, type=int, required=True)
    parser.add_argument("--gpu", action="store_true", help="let Triton see the GPUs")
    parser.add_argument("--check", action="store_true", help="install it, and start nothing")
    parser.add_argument("--detach", action="store_true", help="return when the models are ready")
    parser.add_argument("--stop", action="store_true", help="stop a detached server")
    parser.add_argument("--lock-fd", type=int, help=argparse.SUPPRESS)  # from _detach
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
