"""Run NVIDIA's tritonserver from PyPI, without Docker, and keep it running.

The wheel of ``nvidia-pytriton`` carries the server, its Python backend and the libraries of both.
Our Python-based `pytorch` backend takes the place of the C++ libtorch backend, which it lacks.

The server of that wheel (2.51.0) has known critical vulnerabilities and dies of some malformed
requests, so it listens on 127.0.0.1 only, and a supervisor starts it again when it dies.

Only the standard library; the `start_inference_server_*.sh` scripts are its front.
"""

import argparse
import atexit
import contextlib
import ctypes
import fcntl
import filecmp
import http.client
import os
import platform
import resource
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from reverse_image_search.layout import REPOSITORY_ROOT, STOP_COMMAND

_HOME = REPOSITORY_ROOT / ".triton"
_PYTORCH_BACKEND = Path(__file__).parent / "triton_backend" / "pytorch" / "model.py"
_ADDRESS = "127.0.0.1"

_READY_TIMEOUT = 120  # seconds a start may take
_STOP_TIMEOUT = 15  # seconds a stop may take before the server is killed
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0  # seconds before the server is started again
_CHECK_INTERVAL, _LONGEST_SILENCE = 1.0, 10.0  # seconds between checks, and without an answer
_DEATHS_BEFORE_READY = 3  # in a row, then the supervisor gives up
_POLL = 0.1  # seconds


class LocalServerError(Exception):
    """The server cannot run here; the message says why and what to do."""


def main() -> int:
    """Start, detach or stop the local server; returns the exit code."""
    options = _parse()
    run_file = _HOME / "run" / f"{options.http_port}.pid"
    try:
        if options.stop:
            return _stop(run_file, options.http_port)
        _check_platform()
        _check_not_running(run_file, options.http_port)
        if options.check:
            return 0
        command, environment = _server_command(options)
        with _run_lock(run_file, options.lock_fd) as lock:
            if options.detach:
                return _detach(run_file, lock, options.http_port)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            return Supervisor(command, environment, options).run()
    except LocalServerError as error:
        print(f"tritonserver: {error}", file=sys.stderr)
        return 1


class Supervisor:
    """Runs one tritonserver, starts it again when it dies, stops it on SIGTERM and SIGINT."""

    def __init__(
        self, command: list[str], environment: dict[str, str], options: argparse.Namespace
    ) -> None:
        self._command = command
        self._environment = environment
        self._http_port = options.http_port
        # CUDA reserves far more addresses than there is memory.
        self._limit_memory = not options.gpu
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
        for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(signal_number, self._on_stop_signal)
        deaths_before_ready, pause = 0, _FIRST_PAUSE
        while True:
            server = self._start()
            try:
                was_ready, reason = self._watch(server)
            finally:
                _end(server)
                _remove_shared_memory(self._http_port)
            if self._stopping:
                _say("stopped")
                return 0
            deaths_before_ready = 0 if was_ready else deaths_before_ready + 1
            if deaths_before_ready == _DEATHS_BEFORE_READY:
                raise LocalServerError(
                    f"given up: the server {reason} {deaths_before_ready} times before it was "
                    "ready. Its own log above says why."
                )
            pause = _FIRST_PAUSE if was_ready else min(2 * pause, _LONGEST_PAUSE)
            _say(f"the server {reason}; starting it again in {pause:g} s")
            self._sleep(pause)
            if self._stopping:
                _say("stopped")
                return 0

    def _on_stop_signal(self, _signal_number: int, _frame: object) -> None:
        self._stopping = True

    def _start(self) -> subprocess.Popen:
        _say(f"starting {self._command[0]} on port {self._http_port}")
        _remove_shared_memory(self._http_port)  # of a supervisor that was killed
        # A process group of its own, so that all of it can be ended, and so that Ctrl-C reaches
        # the supervisor alone, which then stops the server in order.
        return subprocess.Popen(
            self._command, env=self._environment, process_group=0, preexec_fn=self._in_child
        )

    def _in_child(self) -> None:
        # Have the kernel send SIGTERM when the supervisor is killed (prctl(2)).
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if self._limit_memory:
            # A request of a few bytes can ask Triton for any amount of memory (doc/faults.md).
            half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
            resource.setrlimit(resource.RLIMIT_AS, (half, half))

    def _watch(self, server: subprocess.Popen) -> tuple[bool, str]:
        """Wait until `server` dies or a stop is asked for: (was it ready, what happened)."""
        start = time.monotonic()
        ready = False
        backend_processes: set[int] = set()
        checked = answered = start
        while not self._stopping:
            now = time.monotonic()
            if server.poll() is not None:
                return ready, f"ended with {_exit_name(server.returncode)}"
            # From the start: one may die as soon as the server is READY.
            backend_processes |= _children(server.pid)
            if ready:
                # Triton goes on saying READY, and answers each request with an error.
                if any(map(_is_dead, backend_processes)):
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
                _say(
                    f"READY at http://{_ADDRESS}:{self._http_port} after "
                    f"{answered - start:.1f} s; Ctrl-C stops it"
                )
            elif now - start > _READY_TIMEOUT:
                return False, f"was not ready within {_READY_TIMEOUT} s"
            time.sleep(_POLL)
        return True, "was told to stop"

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < end:
            time.sleep(_POLL)


def is_ready(http_port: int) -> bool:
    """Whether a server answers on `http_port` with all of its models loaded."""
    # Not urllib.request, which would ask the proxy that http_proxy names.
    connection = http.client.HTTPConnection(_ADDRESS, http_port, timeout=2)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _end(server: subprocess.Popen) -> None:
    """Stop the server in order, then kill what is left of its process group."""
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_TIMEOUT)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _shared_memory_prefix(http_port: int) -> str:
    return f"reverse_image_search_{http_port}_"


def _remove_shared_memory(http_port: int) -> None:
    """Delete what a killed server leaves in /dev/shm: some megabytes for each model."""
    for region in Path("/dev/shm").glob(_shared_memory_prefix(http_port) + "*"):
        with contextlib.suppress(OSError):
            region.unlink()


def _children(pid: int) -> set[int]:
    """Process ids of living children of `pid`: the Python backend runs one for each model.

    Not always all: proc(5) promises a whole list only while nothing changes, and a thread that
    ends, as those that load models do, hands its children to another.
    """
    children: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children.update(int(child) for child in path.read_text().split())
    return {child for child in children if not _is_dead(child)}


def _is_dead(pid: int) -> bool:
    """Whether the process is gone, or a zombie: Triton leaves its dead children unburied."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return True
    return state in "ZX"


def _exit_name(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} tritonserver: {message}", flush=True)


def _server_command(options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of the server; installs it first where it is missing."""
    wheel = _install(options.wheel)
    backends = _path_without_spaces(_lay_out_backends(wheel))
    server = wheel / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    repositories = [
        f"--model-repository={_path_without_spaces(path)}" for path in options.model_repository
    ]
    # Nobody gets the key: through these, attackers have taken servers over (CVE-2025-23319).
    closed = f"model-repository,shared-memory,trace,logging:x-key={secrets.token_hex(16)}"
    command = [
        str(server),
        *repositories,
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={_shared_memory_prefix(options.http_port)}",
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        f"--http-address={_ADDRESS}", f"--http-port={options.http_port}",
        f"--grpc-address={_ADDRESS}", f"--grpc-port={options.grpc_port}",
        f"--metrics-address={_ADDRESS}", f"--metrics-port={options.metrics_port}",
        f"--http-restricted-api={closed}", f"--grpc-restricted-protocol={closed}",
        "--exit-timeout-secs=5",
    ]  # fmt: skip
    libraries = [wheel / "nvidia_pytriton.libs", _libpython_folder()]
    environment = os.environ | {
        # The backend's process takes the `python3` that it finds first.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
        "OMP_NUM_THREADS": "1",
    }
    if not options.gpu:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return command, environment


def _check_platform() -> None:
    minimum_glibc = (2, 35)
    system, machine = platform.system(), platform.machine()
    if (system, machine) != ("Linux", "x86_64"):
        raise LocalServerError(
            f"the local runtime needs Linux on x86_64, this is {system} on {machine}. "
            "Install Docker and use RUNTIME=docker."
        )
    libc, version = platform.libc_ver()
    if libc != "glibc" or tuple(map(int, version.split("."))) < minimum_glibc:
        raise LocalServerError(
            f"the local runtime needs glibc 2.35 or newer, this is {libc or 'another libc'} "
            f"{version}. Install Docker and use RUNTIME=docker."
        )


def _install(requirement: str) -> Path:
    """Folder of the installed wheel of `requirement`, e.g. ``nvidia-pytriton==0.7.0``."""
    folder = _HOME / requirement.replace("==", "-")
    if folder.exists():
        return folder
    print(f"Installing {requirement} (55 MB) into {folder} ...", flush=True)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    # Without its dependencies: they belong to PyTriton's own API, which is not used here.
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", part]
    if subprocess.run([*command, requirement]).returncode != 0:
        shutil.rmtree(part, ignore_errors=True)
        raise LocalServerError(
            f"{requirement} could not be installed (see above). Check the network and try again."
        )
    part.rename(folder)
    return folder


def _lay_out_backends(wheel: Path) -> Path:
    """The folder that Triton takes its backends from: the wheel's `python`, and our `pytorch`."""
    tritonserver = wheel / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = tritonserver / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        supported = ", ".join(sorted(p.name for p in stub.parent.parent.iterdir()))
        raise LocalServerError(
            f"the local runtime has no backend for Python {version}, only for {supported}. "
            "Delete .venv and run the build with one of those, or use RUNTIME=docker."
        )
    # Copies, not links: Triton refuses a backend whose library lies outside its folder.
    backends = _HOME / f"backends-{version}"
    for source in (tritonserver / "backends" / "python").glob("*triton_python*"):
        _copy_if_changed(source, backends / "python" / source.name)
    _copy_if_changed(stub, backends / "python" / stub.name)
    _copy_if_changed(_PYTORCH_BACKEND, backends / "pytorch" / _PYTORCH_BACKEND.name)
    return backends


def _path_without_spaces(folder: Path) -> Path:
    """`folder`, or a way to it that Triton can hand to a shell, which it does without quotes."""
    if shlex.quote(str(folder)) == str(folder):
        return folder
    parent = Path(tempfile.mkdtemp(prefix="reverse_image_search_"))
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    if folder.parent == _HOME:  # Triton follows no links to a backend
        return Path(shutil.copytree(folder, parent / folder.name))
    (parent / folder.name).symlink_to(folder)
    return parent / folder.name


def _copy_if_changed(source: Path, target: Path) -> None:
    """Copy in one step: another server may be reading `target`."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copy2(source, part)
    part.replace(target)


def _libpython_folder() -> Path:
    """Folder of this Python's shared library, which the backend's process links to."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    name = f"libpython{version}.so.1.0"
    own = _HOME / f"libpython{version}"
    folders = [
        Path(sysconfig.get_config_var("LIBDIR")),
        Path(sys.base_prefix) / "lib",
        Path("/usr/lib") / (sysconfig.get_config_var("MULTIARCH") or ""),
        own / "usr/lib/x86_64-linux-gnu",
    ]
    for folder in folders:
        if (folder / name).exists():
            return folder
    package = f"libpython{version}"
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        print(f"Fetching {package}, which the Python backend needs ...", flush=True)
        own.mkdir(parents=True, exist_ok=True)
        for command in (["apt-get", "download", package], ["sh", "-c", "dpkg-deb -x ./*.deb ."]):
            subprocess.run(command, cwd=own, capture_output=True)
        if (folders[-1] / name).exists():
            return folders[-1]
    raise LocalServerError(
        f"{name} is missing, which the Python backend needs. Install it, on Debian and Ubuntu with "
        f"apt-get install {package}"
    )


@contextlib.contextmanager
def _run_lock(run_file: Path, inherited_fd: int | None = None) -> Iterator[TextIO]:
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


def _running_pid(run_file: Path) -> int | None:
    """Process id of the supervisor that holds `run_file`, if one does."""
    try:
        with run_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


def _check_not_running(run_file: Path, http_port: int) -> None:
    if pid := _running_pid(run_file):
        raise LocalServerError(
            f"a server of this project already runs on port {http_port} (process {pid}). "
            f"Stop it with {STOP_COMMAND}"
        )


def _detach(run_file: Path, lock: TextIO, http_port: int) -> int:
    """Start a supervisor in the background and wait until its server is ready."""
    log_file = run_file.with_suffix(".log")
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log_file.open("w") as log:
        supervisor = subprocess.Popen(
            [
                *(sys.executable, "-I", "-m", "reverse_image_search.serving.local_server"),
                *(*arguments, f"--lock-fd={lock.fileno()}"),
            ],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            pass_fds=[lock.fileno()],
        )  # fmt: skip
    try:
        while not is_ready(http_port):
            if supervisor.poll() is not None:
                sys.stderr.write(log_file.read_text())
                return 1
            time.sleep(_POLL)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        return 130
    print(_model_table(log_file.read_text()))
    print(f"READY at http://{_ADDRESS}:{http_port}; log: {log_file}")
    return 0


def _model_table(log: str) -> str:
    """The last table of model names and their status in the server's log."""
    lines = log.splitlines()
    rows = [i for i, line in enumerate(lines) if line.startswith("| Model")]
    if not rows:
        return ""
    end = next((i for i in range(rows[-1], len(lines)) if not lines[i].strip()), len(lines))
    return "\n".join(lines[rows[-1] - 1 : end])


def _stop(run_file: Path, http_port: int) -> int:
    pid = _running_pid(run_file)
    if pid is None:
        print(f"No server of this project runs on port {http_port}.")
        return 0
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 2 * _STOP_TIMEOUT
    while not _is_dead(pid):
        if time.monotonic() > deadline:
            raise LocalServerError(f"process {pid} does not stop. End it with kill -9 {pid}")
        time.sleep(_POLL)
    print(f"Stopped the server on port {http_port}.")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model-repository", type=Path, action="append", required=True)
    parser.add_argument("--wheel", required=True, help="requirement of the PyPI wheel")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    parser.add_argument("--metrics-port", type=int, required=True)
    parser.add_argument("--gpu", action="store_true", help="let Triton see the GPUs")
    parser.add_argument("--check", action="store_true", help="only say whether it could start")
    parser.add_argument("--detach", action="store_true", help="return when the models are ready")
    parser.add_argument("--stop", action="store_true", help="stop a detached server")
    parser.add_argument("--lock-fd", type=int, help=argparse.SUPPRESS)  # from _detach
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
