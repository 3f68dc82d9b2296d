"""Scripts that start servers: ready when they say so, and nothing of them left afterwards."""

import contextlib
import os
import pty
import select
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reverse_image_search.client import Client
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import gallery_file
from tests.running import (
    BIN,
    REPO_ROOT,
    START_TIMEOUT,
    answers,
    descendants,
    is_running,
    processes_naming,
    run_script,
    script_environment,
    wait_until,
)

SERVER = "start_inference_server_cpu.sh"


@contextlib.contextmanager
def foreground(
    script: str, log: Path, repository: Path = REPO_ROOT, cwd: Path | None = None, **settings: str
) -> Iterator[subprocess.Popen]:
    """A script as a terminal runs it: in a process group of its own, its output in `log`."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [repository / "reverse_image_search" / "bin" / script],
            cwd=cwd or repository,
            env=script_environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        yield process
    finally:
        for pid in (*descendants(process.pid), process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_for_line(text: str, log: Path, process: subprocess.Popen) -> None:
    wait_until(
        lambda: text in log.read_text() or process.poll() is not None,
        f"{text!r} in the output:\n{log.read_text()}",
    )
    assert process.poll() is None, log.read_text()


def press_ctrl_c(process: subprocess.Popen) -> int:
    """SIGINT to the whole foreground group, as a terminal sends it; the exit code."""
    os.killpg(process.pid, signal.SIGINT)
    return process.wait(START_TIMEOUT)


def all_gone(family: set[int]) -> None:
    """Whether they ended; killed processes take a moment to give their memory back."""
    wait_until(lambda: not any(map(is_running, family)), f"{family} gone", timeout=20)


def search_works(url: str, output_dir: Path) -> bool:
    gallery = Gallery(gallery_file(output_dir))
    neighbors = Client(url, timeout=60).search([query.pixels for query in gallery.queries([0, 1])])
    return neighbors.ids.shape == (2, 100)


def test_detach_returns_when_ready_and_stop_leaves_nothing(settings, small_build, tmp_path):
    result = run_script(SERVER, "--detach", cwd=tmp_path, **settings)

    assert result.returncode == 0, result.stderr
    assert "Runtime: local (RUNTIME says so)" in result.stdout.splitlines()[0]
    port = settings["TRITON_HTTP_PORT"]
    for model in ("image_encoder    ", "vector_similarity"):
        assert f"| {model} | 1       | READY  |" in result.stdout
    assert search_works(f"http://127.0.0.1:{port}", small_build)

    (supervisor,) = (
        pid for pid, command in processes_naming(port).items() if "local_server" in command
    )
    family = descendants(supervisor) | {supervisor}
    assert len(family) >= 4, "supervisor, tritonserver and one process for each model"

    again = run_script(SERVER, "--detach", **settings)
    assert again.returncode == 1
    assert f"already runs on port {port} (process {supervisor})" in again.stderr
    assert f"{SERVER} --stop" in again.stderr

    stopped = run_script(SERVER, "--stop", cwd=tmp_path, **settings)
    assert stopped.returncode == 0, stopped.stderr
    all_gone(family)
    assert not processes_naming(port)

    nothing = run_script(SERVER, "--stop", **settings)
    assert nothing.returncode == 0
    assert f"No server of this project runs on port {port}" in nothing.stdout


def test_stop_leaves_other_servers_alone(triton, client, ports):
    result = run_script(SERVER, "--stop", **triton.environment | ports)

    assert result.returncode == 0
    assert client.is_ready()


def test_ctrl_c_stops_the_server_in_the_foreground(settings, small_build, tmp_path):
    log = tmp_path / "log"
    port = settings["TRITON_HTTP_PORT"]
    with foreground(SERVER, log, **settings) as process:
        wait_for_line("READY at", log, process)
        assert "| vector_similarity | 1       | READY  |" in log.read_text()
        assert search_works(f"http://127.0.0.1:{port}", small_build)
        family = descendants(process.pid)
        assert len(family) >= 3

        assert press_ctrl_c(process) == 0

        all_gone(family)
        assert not processes_naming(port)


def test_a_benchmark_that_is_killed_stops_its_server(small_build):
    serve = (
        "import pathlib, time; from reverse_image_search.benchmark.servers import local_server\n"
        f"with local_server([pathlib.Path({str(small_build / 'model_repo')!r})]) as url:\n"
        "    print(url, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-I", "-c", serve]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert Client(process.stdout.readline().strip(), timeout=60).is_ready()
    family = descendants(process.pid)
    assert len(family) >= 3

    process.terminate()

    assert process.wait(60) == 128 + signal.SIGTERM
    all_gone(family)


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
def test_a_closed_terminal_stops_the_server_too(settings, tmp_path, signal_):
    log = tmp_path / "log"
    with foreground(SERVER, log, **settings) as process:
        wait_for_line("READY at", log, process)
        family = descendants(process.pid)

        process.send_signal(signal_)
        process.wait(START_TIMEOUT)

        all_gone(family)


def test_ctrl_c_while_the_server_starts_stops_it(settings, tmp_path):
    log = tmp_path / "log"
    with foreground(SERVER, log, **settings) as process:
        wait_until(
            lambda: any(
                "/bin/tritonserver" in c
                for c in processes_naming(f"--http-port={settings['TRITON_HTTP_PORT']}").values()
            ),
            "tritonserver started",
        )
        family = descendants(process.pid)

        press_ctrl_c(process)

        all_gone(family)


def test_app_answers_and_ctrl_c_stops_it(settings, tmp_path):
    log = tmp_path / "log"
    page = f"http://127.0.0.1:{settings['APP_PORT']}"
    with foreground("start_app.sh", log, cwd=tmp_path, **settings) as process:
        wait_until(
            lambda: answers(f"{page}/_stcore/health") or process.poll() is not None, "the app"
        )
        assert process.poll() is None, log.read_text()
        assert answers(page)
        family = descendants(process.pid)

        press_ctrl_c(process)

        all_gone(family)
        assert not answers(page)


def test_demo_serves_the_page_and_ctrl_c_leaves_nothing(settings, tmp_path):
    log = tmp_path / "log"
    page = f"http://127.0.0.1:{settings['APP_PORT']}"
    server = f"http://127.0.0.1:{settings['TRITON_HTTP_PORT']}"
    with foreground("demo.sh", log, cwd=tmp_path, **settings) as process:
        wait_until(
            lambda: answers(f"{page}/_stcore/health") or process.poll() is not None, "the page"
        )
        assert process.poll() is None, log.read_text()
        assert answers(page)
        assert answers(f"{server}/v2/health/ready")
        assert f"Open http://localhost:{settings['APP_PORT']}/" in log.read_text()
        supervisors = processes_naming(f"--http-port {settings['TRITON_HTTP_PORT']}")
        family = descendants(process.pid).union(
            supervisors, *(descendants(pid) for pid in supervisors)
        )
        assert len(family) >= 5, "app, supervisor, tritonserver and one process for each model"

        press_ctrl_c(process)

        all_gone(family)
        assert not answers(page)
        assert not answers(f"{server}/v2/health/live")
        assert "Stopped the server" in log.read_text()


class Terminal:
    """A terminal window in which demo.sh was typed into an interactive bash."""

    def __init__(self, settings: dict[str, str]) -> None:
        self.shell, self._window = pty.fork()
        if self.shell == 0:
            os.execvpe("bash", ["bash", "--norc", "-i"], script_environment(**settings))
        self._closing = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.type(f"{shlex.quote(str(BIN / 'demo.sh'))}\n")

    def type(self, keys: str) -> None:
        os.write(self._window, keys.encode())

    def close(self) -> None:
        if not self._closing.is_set():
            self._closing.set()
            self._reader.join()
            os.close(self._window)

    def _read(self) -> None:
        while not self._closing.is_set():
            if select.select([self._window], [], [], 0.1)[0]:
                try:
                    os.read(self._window, 65536)
                except OSError:  # its programs have ended
                    return


@contextlib.contextmanager
def demo_in_a_terminal(settings: dict[str, str]) -> Iterator[Terminal]:
    """A terminal in which demo.sh runs and shows its page."""
    terminal = Terminal(settings)
    try:
        page = f"http://127.0.0.1:{settings['APP_PORT']}/_stcore/health"
        wait_until(lambda: answers(page), "the page", timeout=120)
        yield terminal
    finally:
        terminal.close()
        for pid in (*descendants(terminal.shell), terminal.shell):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os.waitpid(terminal.shell, 0)


def nothing_is_left(settings: dict[str, str]) -> None:
    """No process of the demo, and no port held, half a minute later at most."""
    ports = [value for name, value in settings.items() if name.endswith("PORT")]

    def gone() -> bool:
        return not any(map(processes_naming, ports)) and not any(map(is_listening, ports))

    wait_until(gone, f"all of {[processes_naming(port) for port in ports]} gone", timeout=40)


def is_listening(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def end_ssh_session(terminal: Terminal) -> None:
    os.kill(terminal.shell, signal.SIGHUP)


def kill_the_shell(terminal: Terminal) -> None:
    os.kill(terminal.shell, signal.SIGKILL)


def kill_demo(terminal: Terminal) -> None:
    (demo,) = children_of(terminal.shell).intersection(processes_naming("bin/demo.sh"))
    os.kill(demo, signal.SIGKILL)


def press_ctrl_c_three_times(terminal: Terminal) -> None:
    for _ in range(3):
        terminal.type("\x03")
        time.sleep(0.3)


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


@pytest.mark.parametrize(
    "end",
    [Terminal.close, end_ssh_session, kill_the_shell, kill_demo, press_ctrl_c_three_times],
    ids=lambda end: end.__name__,
)
def test_demo_leaves_nothing_however_it_ends(settings, end):
    with demo_in_a_terminal(settings) as terminal:
        end(terminal)
        nothing_is_left(settings)


@pytest.mark.parametrize("moment", ["Runtime:", "starting"])
def test_demo_that_is_killed_while_the_server_starts_leaves_nothing(settings, tmp_path, moment):
    log = tmp_path / "log"
    with foreground("demo.sh", log, **settings) as process:
        server = f"--http-port={settings['TRITON_HTTP_PORT']}"
        wait_until(
            lambda: moment in log.read_text() if moment == "Runtime:" else processes_naming(server),
            moment,
        )
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        nothing_is_left(settings)


@pytest.mark.parametrize(("script", "lines"), [("demo.sh", 1), ("demo.sh", 8), (SERVER, 1)])
def test_a_reader_that_goes_away_leaves_nothing(settings, script, lines):
    """As in `demo.sh | head -n 1`."""
    with subprocess.Popen(
        [BIN / script],
        env=script_environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as process:
        for _ in range(lines):
            process.stdout.readline()
        process.stdout.close()
        if script == "demo.sh" and lines > 1:  # Streamlit goes on without a reader
            process.terminate()
        process.wait(START_TIMEOUT)
    nothing_is_left(settings)


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", "| true"])
def test_stop_acts_before_it_writes(settings, redirection):
    """Where nobody reads what it prints."""
    assert run_script(SERVER, "--detach", **settings).returncode == 0

    stop = f'"{BIN / SERVER}" --stop {redirection}'
    subprocess.run(["bash", "-c", stop], env=script_environment(**settings), timeout=60)

    nothing_is_left(settings)


def test_nohup_outlives_the_terminal(settings, tmp_path):
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["nohup", BIN / SERVER],
            env=script_environment(**settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
    try:
        wait_for_line("READY at", log, process)
        os.killpg(process.pid, signal.SIGHUP)
        time.sleep(1)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(START_TIMEOUT)
    nothing_is_left(settings)


def test_demo_stops_the_server_when_the_app_dies(settings, tmp_path):
    log = tmp_path / "log"
    with foreground("demo.sh", log, **settings) as process:
        health = f"http://127.0.0.1:{settings['APP_PORT']}/_stcore/health"
        wait_until(lambda: answers(health) or process.poll() is not None, "the page")
        (app,) = (
            pid
            for pid in descendants(process.pid)
            if "reverse_image_search.app" in Path(f"/proc/{pid}/cmdline").read_text()
        )

        os.kill(app, signal.SIGKILL)

        assert process.wait(START_TIMEOUT) != 0
        assert not processes_naming(settings["TRITON_HTTP_PORT"])


def test_all_works_from_a_path_with_a_space(
    copy_repository, small_build, ports, tmp_path, data_dir
):
    """Build, server and app of a repository whose path needs quotes, called from elsewhere."""
    repository = copy_repository(tmp_path / "with space" / "a clone")
    settings = {"RUNTIME": "local", **ports}
    build = ("--limit", "300", "--epochs", "1", "--data-dir", str(data_dir), "--no-floor")

    built = run_script("build_models.sh", *build, repository=repository, cwd=tmp_path, **settings)
    assert built.returncode == 0, built.stdout + built.stderr
    assert sorted(p.name for p in (repository / "model_repo").iterdir()) == [
        "image_encoder",
        "vector_similarity",
    ]

    started = run_script(SERVER, "--detach", repository=repository, cwd=tmp_path, **settings)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        assert search_works(f"http://127.0.0.1:{ports['TRITON_HTTP_PORT']}", repository)
        log = tmp_path / "log"
        with foreground(
            "start_app.sh", log, repository=repository, cwd=tmp_path, **settings
        ) as process:
            health = f"http://127.0.0.1:{ports['APP_PORT']}/_stcore/health"
            wait_until(lambda: answers(health) or process.poll() is not None, "the app")
            assert process.poll() is None, log.read_text()
    finally:
        stopped = run_script(SERVER, "--stop", repository=repository, cwd=tmp_path, **settings)
    assert stopped.returncode == 0, stopped.stderr
    assert not processes_naming(ports["TRITON_HTTP_PORT"])


def test_a_script_called_by_a_relative_path_works(tmp_path):
    relative = os.path.relpath(BIN / SERVER, tmp_path)
    result = subprocess.run(
        [relative], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env=script_environment(RUNTIME="local", OUTPUT_DIR=str(tmp_path)),
    )  # fmt: skip

    assert result.returncode == 1
    assert f"There are no models in {tmp_path}/model_repo" in result.stderr


def test_container_ends_with_its_script_when_a_signal_meets_the_end_of_that():
    """As Ctrl-C does, which ends the script's own `docker logs`, and demo.sh then ends the script.

    Bash does nothing more of an EXIT trap once the trap of a signal says `exit`.
    """
    lib = BIN / "lib"
    code = f"""
        set -euo pipefail; source {lib}/settings.sh; source {lib}/docker.sh
        removing=0
        remove_container() {{ ((removing++)) || kill -TERM $$; echo "removed $1"; }}
        end_with_script app 7
    """
    result = subprocess.run(["bash", "-p", "-c", code], capture_output=True, text=True, timeout=30)

    assert (result.stdout, result.stderr, result.returncode) == ("removed app\n", "", 7)
