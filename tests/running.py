"""Run the project's scripts and servers for real, from a test, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reverse_image_search.serving.ports import free_ports

REPO_ROOT = Path(__file__).resolve().parent.parent
BIN = REPO_ROOT / "reverse_image_search" / "bin"
IN_CI = os.environ.get("CI") == "true"

# Bounds against hanging, not expectations: the machine may be busy with other work.
START_TIMEOUT = 180  # seconds
BUILD_TIMEOUT = 600


def skip_or_fail(reason: str) -> None:
    """For what the machine lacks: a test skips and says so, but in CI it must not go unnoticed."""
    if IN_CI:
        pytest.fail(f"CI must have this: {reason}", pytrace=False)
    pytest.skip(reason)


def wait_until(condition: Callable[[], object], what: str, timeout: float = START_TIMEOUT) -> None:
    """Poll `condition` until it holds; fail with `what` after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout:g} s: {what}")
        time.sleep(0.1)


# Of an address of this machine, whatever proxy the environment names.
open_url = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


def answers(url: str) -> bool:
    """Whether a GET of `url` succeeds."""
    try:
        with open_url(url, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def processes_naming(text: str) -> dict[int, str]:
    """Command lines, by process id, of the running processes that have `text` in theirs.

    A number at its beginning or end is not part of a longer one.
    """
    pattern = re.compile(rf"(?<![0-9](?=[0-9])){re.escape(text)}(?!(?<=[0-9])[0-9])")
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if pattern.search(command):
            found[int(path.parent.name)] = command
    return found


def descendants(pid: int) -> set[int]:
    """Process ids of all children of `pid`, their children, and so on."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything; the parent is the second word after it.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A control group of `limit` bytes, version 1 or 2."""
    parent = Path("/sys/fs/cgroup/memory")
    name = "memory.limit_in_bytes"
    if not parent.is_dir():
        parent, name = Path("/sys/fs/cgroup"), "memory.max"
    group = parent / f"reverse_image_search_{time.monotonic_ns()}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):  # a process in it may still be ending
            group.rmdir()


def script_environment(**variables: str) -> dict[str, str]:
    """This process's environment without the project's settings, plus `variables`."""
    settings = [
        line.partition("=")[0]
        for line in (REPO_ROOT / ".env").read_text().splitlines()
        if line[:1].isalpha()
    ]
    inherited = {k: v for k, v in os.environ.items() if k not in (*settings, "TRITON_URL")}
    return inherited | variables


def run_script(
    name: str,
    *arguments: str,
    repository: Path = REPO_ROOT,
    cwd: Path | None = None,
    timeout: float = START_TIMEOUT,
    **variables: str,
) -> subprocess.CompletedProcess:
    """Run a script of `reverse_image_search/bin` to its end; `variables` go into its environment.

    Its standard output and error are the result's `stdout` and `stderr`, as text.
    """
    return subprocess.run(
        [repository / "reverse_image_search" / "bin" / name, *arguments],
        cwd=cwd or repository,
        env=script_environment(**variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@dataclass
class Triton:
    """A tritonserver of the local runtime, run by the project's own start script.

    Attributes
    ----------
    output_dir : folder that holds model_repo/ and gallery/
    environment : settings that the start script gets, and that a script which meets this server
        should get too
    """

    output_dir: Path
    http_port: int
    grpc_port: int
    metrics_port: int
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.environment = {
            "RUNTIME": "local",
            "OUTPUT_DIR": str(self.output_dir),
            "TRITON_HTTP_PORT": str(self.http_port),
            "TRITON_GRPC_PORT": str(self.grpc_port),
            "TRITON_METRICS_PORT": str(self.metrics_port),
            "MILVUS_URI": os.environ.get("MILVUS_URI", ""),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def log(self) -> str:
        """What supervisor and server printed so far."""
        return (REPO_ROOT / ".triton" / "run" / f"{self.http_port}.log").read_text()

    @property
    def pid(self) -> int:
        """Process id of the supervisor, the parent of tritonserver."""
        return int((REPO_ROOT / ".triton" / "run" / f"{self.http_port}.pid").read_text())

    @property
    def server_pid(self) -> int:
        """Process id of tritonserver itself; another one after the supervisor restarted it."""
        (pid,) = (
            pid
            for pid, command in processes_naming(f"--http-port={self.http_port}").items()
            if command.split()[0].endswith("/tritonserver")
        )
        return pid

    def start(self, *arguments: str) -> subprocess.CompletedProcess:
        """Start in the background; returns when the models are READY."""
        return run_script(
            "start_inference_server_cpu.sh", "--detach", *arguments, **self.environment
        )

    def stop(self) -> subprocess.CompletedProcess:
        """Stop it and wait until its processes are gone."""
        return run_script("start_inference_server_cpu.sh", "--stop", **self.environment)

    def kill(self) -> None:
        """Last resort of a test that failed: end supervisor and server by their ids."""
        kill_server(self.http_port)


def kill_server(http_port: int | str) -> None:
    """End the local server on a port, the supervisor first, which would start it again."""
    for option in ("--http-port ", "--http-port="):
        for pid in processes_naming(f"{option}{http_port}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def start_server(output_dir: Path, *arguments: str) -> Triton:
    """Serve the build in `output_dir` on free ports."""
    server = Triton(output_dir, *free_ports(3))
    result = server.start(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return server


def stop_server(server: Triton) -> None:
    """Stop `server`; fail when that leaves a process of it behind."""
    result = server.stop()
    try:
        assert result.returncode == 0, result.stdout + result.stderr
        # Not the bare number, which may be part of another program's arguments.
        names = (f"--http-port={server.http_port}", f"reverse_image_search_{server.http_port}_")
        wait_until(lambda: not any(map(processes_naming, names)), "all gone", timeout=20)
    finally:
        server.kill()
