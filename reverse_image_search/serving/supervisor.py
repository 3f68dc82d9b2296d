"""Keep one tritonserver running: start it again when it dies, hangs or uses too much memory.

Only the standard library.
"""

import contextlib
import ctypes
import errno
import http.client
import os
import signal
import subprocess
import time
from pathlib import Path

from reverse_image_search.serving.memory import used_memory

ADDRESS = "127.0.0.1"
POLL = 0.1  # seconds

_READY_TIMEOUT = 120  # seconds a start may take
STOP_TIMEOUT = 15  # seconds a stop may take before the server is killed
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before the server is started again
_CHECK_INTERVAL, _LONGEST_SILENCE = 1.0, 10.0  # seconds between checks, and without an answer
_DEATHS_BEFORE_READY = 3  # in a row, then the supervisor gives up
_SHARED_MEMORY = Path("/dev/shm")


class LocalServerError(Exception):
    """The server cannot run here; the message says why and what to do."""


class Supervisor:
    """Runs one tritonserver until `stop` is called.

    Parameters
    ----------
    command, environment : of the server
    http_port : port that the server answers HTTP on
    memory_limit : bytes that the server and its models may use before it is started again
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], http_port: int, memory_limit: int
    ) -> None:
        self._command = command
        self._environment = environment
        self._http_port = http_port
        self._memory_limit = memory_limit
        self._stopping = False

    def run(self) -> int:
        """Serve until told to stop.

        Returns
        -------
        exit code: 0 after a stop

        Raises
        ------
        LocalServerError : the server died several times before it was ready
        """
        deaths_before_ready, pause = 0, _FIRST_PAUSE
        while True:
            server = self._start()
            try:
                was_ready, reason = self._watch(server)
            finally:
                _end(server)
                self._remove_shared_memory()
            if self._stopping:
                break
            deaths_before_ready = 0 if was_ready else deaths_before_ready + 1
            if deaths_before_ready == _DEATHS_BEFORE_READY:
                raise LocalServerError(
                    f"given up: the server {reason} {deaths_before_ready} times before it was "
                    "ready. Its own log above says why."
                )
            pause = _FIRST_PAUSE if was_ready else min(2 * pause, _LONGEST_PAUSE)
            self._say(f"the server {reason}; starting it again in {pause:g} s")
            self._sleep(pause)
            if self._stopping:
                break
        self._say("stopped")
        return 0

    def stop(self) -> None:
        """Have `run` stop the server and return; safe to call from a signal handler."""
        self._stopping = True

    def _start(self) -> subprocess.Popen:
        self._say(f"starting {self._command[0]} on port {self._http_port}")
        self._remove_shared_memory()  # of a supervisor that was killed
        # A process group of its own, so that all of it can be ended, and so that Ctrl-C reaches
        # the supervisor alone, which then stops the server in order.
        return subprocess.Popen(
            self._command, env=self._environment, process_group=0, preexec_fn=_in_child
        )

    def _watch(self, server: subprocess.Popen) -> tuple[bool, str]:
        """Wait until `server` dies or a stop is asked for: (was it ready, what happened)."""
        start = time.monotonic()
        ready = False
        models: set[int] = set()
        checked = answered = start
        while not self._stopping:
            now = time.monotonic()
            if server.poll() is not None:
                return ready, f"ended with {_exit_name(server.returncode)}"
            # From the start: one may die as soon as the server is READY.
            children = _children(server.pid)
            models |= {pid for pid in children if _runs_a_model(pid)}
            used = used_memory({server.pid, *children, *models}, self._shared_memory())
            if used > self._memory_limit:
                # A request of a few bytes can ask Triton for any amount of memory (doc/faults.md).
                os.killpg(server.pid, signal.SIGKILL)
                return ready, (
                    f"used {used / 2**30:.1f} GB of memory "
                    f"(its limit: {self._memory_limit / 2**30:.1f} GB)"
                )
            if ready:
                # Triton goes on saying READY, and answers each request with an error.
                if any(map(is_dead, models)):
                    server.kill()  # it would wait for the lost process before it stops
                    return True, "lost the process of a model"
                if now - checked > _CHECK_INTERVAL:
                    checked = now
                    if is_ready(self._http_port):
                        answered = now
                    elif now - answered > _LONGEST_SILENCE:
                        server.kill()
                        return True, f"was not READY for {now - answered:.0f} s"
            elif is_ready(self._http_port):
                ready = True
                checked = answered = time.monotonic()
                self._say(
                    f"READY at http://{ADDRESS}:{self._http_port} after "
                    f"{answered - start:.1f} s; Ctrl-C stops it"
                )
            elif now - start > _READY_TIMEOUT:
                return False, f"was not ready within {_READY_TIMEOUT} s"
            time.sleep(POLL)
        return True, "was told to stop"

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < end:
            time.sleep(POLL)

    def _shared_memory(self) -> list[Path]:
        return list(_SHARED_MEMORY.glob(shared_memory_prefix(self._http_port) + "*"))

    def _remove_shared_memory(self) -> None:
        """Delete what a killed server leaves: some megabytes for each model."""
        for region in self._shared_memory():
            with contextlib.suppress(OSError):
                region.unlink()

    def _say(self, message: str) -> None:
        line = f"{time.strftime('%H:%M:%S')} tritonserver: {message}\n"
        try:
            os.write(1, line.encode())
        except OSError as error:
            # Nobody reads on: the terminal was closed, or the program behind a pipe has ended.
            # A full disk is no reason to stop.
            if error.errno in (errno.EPIPE, errno.EIO, errno.EBADF):
                self._stopping = True


def shared_memory_prefix(http_port: int) -> str:
    """Start of the names of the files in /dev/shm that the server on `http_port` makes."""
    return f"reverse_image_search_{http_port}_"


def is_ready(http_port: int) -> bool:
    """Whether a server answers on `http_port` with all of its models loaded."""
    # Not urllib.request, which would ask the proxy that http_proxy names.
    connection = http.client.HTTPConnection(ADDRESS, http_port, timeout=2)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_dead(pid: int) -> bool:
    """Whether the process is gone, or a zombie: Triton leaves its dead children unburied."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return True
    return state in "ZX"


def _in_child() -> None:
    # Have the kernel send SIGTERM when the supervisor is killed (prctl(2)).
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    # Where memory runs out all the same, the kernel ends the server and not another program.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _end(server: subprocess.Popen) -> None:
    """Stop the server in order, then kill what is left of its process group."""
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _children(pid: int) -> set[int]:
    """Process ids of living children of `pid`.

    Not always all: proc(5) promises a whole list only while nothing changes, and a thread that
    ends, as those that load models do, hands its children to another.
    """
    children: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children.update(int(child) for child in path.read_text().split())
    return {child for child in children if not is_dead(child)}


def _runs_a_model(pid: int) -> bool:
    """Whether a child of Triton is one of the Python backend's; its metrics start others."""
    try:
        program = Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0]
    except OSError:
        return False
    return program.endswith(b"triton_python_backend_stub")


def _exit_name(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
