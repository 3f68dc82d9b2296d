"""What the tests of the docker runtime share: the engine seen through its client, the scripts run
in the foreground, and what a right search is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reverse_image_search.client import Client
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import gallery_file
from tests.running import BIN, free_ports, script_environment, wait_until

SERVER_CONTAINER = "reverse_image_search_triton"
APP_CONTAINER = "reverse_image_search_app"
BUILD_CONTAINER = "reverse_image_search_build"
NETWORK = "reverse_image_search_default"
START = "start_inference_server_cpu.sh"
GALLERY_SIZE = 2000
STOP_TIMEOUT = 60  # seconds


def docker(*arguments: str, check: bool = True) -> str:
    """Output of a docker command, both streams."""
    result = subprocess.run(
        ["docker", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert result.returncode == 0 or not check, f"docker {arguments}: {result.stdout}"
    return result.stdout.strip()


def inspect(container: str) -> dict:
    """What the engine knows about a container."""
    return json.loads(docker("container", "inspect", container))[0]


def left_behind() -> list[str]:
    """Containers and networks of this project that exist now, running or not."""
    containers = docker("ps", "--all", "--format", "{{.Names}}").split()
    networks = docker("network", "ls", "--format", "{{.Name}}").split()
    return [
        name
        for name in (*containers, *networks)
        if "reverse_image_search" in name.replace("-", "_")
    ]


@dataclass
class Ports:
    """Free ports for one test, so that it meets no other server of the machine."""

    http: int
    app: int
    variables: dict[str, str] = field(repr=False)

    @classmethod
    def pick(cls) -> Ports:
        names = ("TRITON_HTTP_PORT", "TRITON_GRPC_PORT", "TRITON_METRICS_PORT", "APP_PORT")
        variables = dict(zip(names, map(str, free_ports(4)), strict=True))
        return cls(int(variables["TRITON_HTTP_PORT"]), int(variables["APP_PORT"]), variables)


@dataclass
class ContainerBuild:
    """A build made by build_models.sh in a container, and what it printed."""

    output_dir: Path
    owner: int
    output: str


def assert_searches_right(url: str, output_dir: Path) -> None:
    """Gallery images find themselves: the one answer that is known beforehand."""
    gallery = Gallery(gallery_file(output_dir))
    picked = [0, GALLERY_SIZE // 2, GALLERY_SIZE - 1]
    neighbors = Client(url, timeout=60).search([image.pixels for image in gallery.images(picked)])
    assert neighbors.ids[:, 0].tolist() == picked
    assert neighbors.scores[:, 0] == pytest.approx(1, abs=1e-4)


def kill_tritonserver() -> None:
    """A crash: SIGKILL to the server's process, from outside of its container."""
    top = docker("top", SERVER_CONTAINER, "-eo", "pid,args")
    (pid,) = (
        int(line.split()[0])
        for line in top.splitlines()
        if line.split()[1].endswith("tritonserver")
    )
    os.kill(pid, signal.SIGKILL)


def is_ready(url: str) -> bool:
    return Client(url, timeout=5).is_ready()


class Foreground:
    """A start script that runs until it is told to stop, its output in a file."""

    def __init__(self, script: str, log: Path, variables: dict[str, str], *arguments: str) -> None:
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [BIN / script, *arguments],
                env=script_environment(**variables), stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, start_new_session=True,
                # As from a terminal; a shell cannot trap what was ignored when it started, as it
                # is when the tests run in the background.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        wait_until(
            lambda: self.output.count(text) >= times or self.process.poll() is not None, text
        )
        assert self.output.count(text) >= times, self.output

    def press_ctrl_c(self) -> int:
        """What a terminal does: SIGINT to the script and everything that it started."""
        return self.signal(signal.SIGINT)

    def signal(self, number: signal.Signals) -> int:
        """Send a signal to the script and everything that it started; returns its exit code."""
        os.killpg(self.process.pid, number)
        return self.process.wait(STOP_TIMEOUT)
