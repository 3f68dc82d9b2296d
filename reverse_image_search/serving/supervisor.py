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
from dataclasses import dataclass
from pathlib import Path

from reverse_image_search.serving.memory import address_limit, used_memory

ADDRESS = "127.0.0.1"
POLL = 0.1  # seconds
STOP_TIMEOUT = 15  # seconds a stop may take before the server is killed

_READY_TIMEOUT, _LONGEST_SILENCE = 120, 10  # seconds without READY: while it starts, and later
_CHECK_INTERVAL = 1.0  # seconds between the slower checks of a server that was READY
_FIRST_PAUSE = 0.5  # seconds before the server is started again; doubled for each death in a row
_DEATHS_BEFORE_READY = 3  # in a row, then the supervisor gives up
_INSTANCE_ARGUMENT = 8  # of the Python backend's processes: image_encoder_0, for one
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


class LocalServerError(Exception):
    """The server cannot run here; the message says why and what to do."""


@dataclass
class Supervisor:
    """Runs one tritonserver until `stop` is called."""

    command: list[str]
    environment: dict[str, str]
    http_port: int  # that the server answers on
    memory_limit: int  # bytes that the server and its models may use before it is started again
    _stopping: bool = False

    def run(self) -> int:
        """Serve until told to stop; returns the exit code, 0.

        Raises LocalServerError when the server dies several times before it is ready.
        """
        deaths = 0
        while not self._stopping:
            server = self._start()
            try:
                was_ready, reason = self._watch(server)
            finally:
                self._end(server)
            if self._stopping:
                break
            deaths = 0 if was_ready else deaths + 1
            if deaths == _DEATHS_BEFORE_READY:
                raise LocalServerError(
                    f"given up: the server {reason} {deaths} times before it was ready. "
                    f"Its own log above says why.{address_limit()}"
                )
            pause = _FIRST_PAUSE * 2**deaths
            self._say(f"the server {reason}; starting it again in {pause:g} s")
            end = time.monotonic() + pause
            while not self._stopping and time.monotonic() < end:
                time.sleep(POLL)
        self._say("stopped")
        return 0

    def stop(self) -> None:
        """Have `run` stop the server and return; safe to call from a signal handler."""
        self._stopping = True

    def _start(self) -> subprocess.Popen:
        self._say(f"starting {self.command[0]} on port {self.http_port}")
        self._remove_shared_memory()  # of a supervisor that was killed
        # A process group of its own, so that all of it can be ended, and so that Ctrl-C reaches
        # the supervisor alone, which then stops the server in order.
        return subprocess.Popen(
            self.command, env=self.environment, process_group=0, preexec_fn=_in_child
        )

    def _watch(self, server: subprocess.Popen) -> tuple[bool, str]:
        """Wait until `server` has to be ended: (was it ready, what happened)."""
        url = f"http://{ADDRESS}:{self.http_port}"
        start = answered = checked = time.monotonic()
        ready = False
        children: set[int] = set()
        models: dict[int, str] = {}  # what each process of the Python backend runs
        lost: set[int] = set()  # of them, those that have died without a successor
        while not self._stopping:
            if (code := server.poll()) is not None:
                exit_name = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
                return ready, f"ended with {exit_name}"
            now = time.monotonic()
            is_check_due = not ready or now - checked > _CHECK_INTERVAL
            dead = set(filter(is_dead, models))
            if is_check_due or dead:
                # From the start: one may die as soon as the server is READY.
                children = _children(server.pid)
                models |= {pid: name for pid in children if (name := _model_instance(pid))}
            # A request of a few bytes can ask Triton for any amount of memory (doc/faults.md).
            used = used_memory({server.pid, *children, *models}, self._shared_memory())
            if used > self.memory_limit:
                limit = f"its limit: {self.memory_limit / 2**30:.1f} GB"
                return ready, f"used {used / 2**30:.1f} GB of memory ({limit})"
            living = {models[pid] for pid in models.keys() - dead}
            # Others have a new version, whose process the list of children may have left out once.
            lost, lost_before = {pid for pid in dead if models[pid] not in living}, lost
            # Triton goes on saying READY, and answers each request with an error.
            if ready and lost & lost_before:
                return True, "lost the process of a model"
            models = {pid: name for pid, name in models.items() if pid not in dead - lost}
            if is_check_due:
                checked = now
                if is_ready(self.http_port):
                    answered = time.monotonic()
                    if not ready:
                        self._say(f"READY at {url} after {answered - start:.1f} s; Ctrl-C stops it")
                    ready = True
                elif now - answered > (_LONGEST_SILENCE if ready else _READY_TIMEOUT):
                    return ready, f"was not READY for {now - answered:.0f} s"
            time.sleep(POLL)
        return True, "was told to stop"

    def _end(self, server: subprocess.Popen) -> None:
        """Stop the server in order where that was asked for, and kill all that is left of it."""
        if self._stopping:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(STOP_TIMEOUT)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        self._remove_shared_memory()

    def _shared_memory(self) -> list[Path]:
        return list(Path("/dev/shm").glob(shared_memory_prefix(self.http_port) + "*"))

    def _remove_shared_memory(self) -> None:
        """Delete what a killed server leaves: some megabytes for each model."""
        for region in self._shared_memory():
            with contextlib.suppress(OSError):
                region.unlink()

    def _say(self, message: str) -> None:
        try:
            os.write(1, f"{time.strftime('%H:%M:%S')} tritonserver: {message}\n".encode())
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
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    return False


def is_dead(pid: int) -> bool:
    """Whether the process is gone, or a zombie: Triton leaves its dead children unburied."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "ZX"
    return True


def _in_child() -> None:
    # When the supervisor is killed, the kernel stops the server; where memory runs out all the
    # same, it ends the server and not another program.
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _children(pid: int) -> set[int]:
    """Process ids of living children of `pid`.

    Not always all: proc(5) promises a whole list only while nothing changes, and a thread that
    ends, as those that load models do, hands its children to another.
    """
    children: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children.update(map(int, path.read_text().split()))
    return {child for child in children if not is_dead(child)}


def _model_instance(pid: int) -> str | None:
    """Name of the model's instance that a child of Triton runs, the same in all versions.

    None for other children: Triton's metrics start some.
    """
    with contextlib.suppress(OSError):
        arguments = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
        if arguments[0].endswith("triton_python_backend_stub"):
            return "".join(arguments[_INSTANCE_ARGUMENT : _INSTANCE_ARGUMENT + 1])
    return None
