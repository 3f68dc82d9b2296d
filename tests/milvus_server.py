"""A Milvus server for tests, in a process of its own: Milvus Lite's, on 127.0.0.1.

With TEST_MILVUS=standalone, as root and after ``pip install --no-deps milvus==2.3.5``, it is the
standalone server in that package. That one listens on all addresses, so it gets a network of its
own, which only this machine reaches.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import free_ports, skip_or_fail, wait_until


class MilvusServer:
    """A server that keeps its data in `folder`, and its address when it is started again."""

    def __init__(self, folder: Path) -> None:
        if not importlib.util.find_spec("milvus_lite"):
            skip_or_fail("pymilvus is not installed: pip install -r requirements-milvus.txt")
        self._folder, self._host = folder, "127.0.0.1"
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        """Its address, for MILVUS_URI."""
        return f"http://{self._host}:{self._port}"

    def start(self) -> None:
        """Return when it accepts connections."""
        with (self._folder.parent / "milvus.log").open("a") as log:
            self._process = self._open(log)
        wait_until(self._answers, f"Milvus at {self.uri}")

    def kill(self) -> None:
        """End it without warning."""
        if self._process:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Return when none of its threads runs any more."""
        if self._process:
            self._process.send_signal(signal.SIGSTOP)
            os.waitpid(self._process.pid, os.WUNTRACED)

    def thaw(self) -> None:
        """Let it go on."""
        if self._process:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, and leave nothing behind."""
        self.kill()

    def _open(self, log) -> subprocess.Popen:
        module = [sys.executable, "-m", "milvus_lite", "server"]
        options = [f"--data-dir={self._folder}", f"--host={self._host}", f"--port={self._port}"]
        # In the environment, pymilvus would take it for a setting of its own.
        environment = {k: v for k, v in os.environ.items() if k != "MILVUS_URI"}
        return subprocess.Popen([*module, *options], env=environment, stdout=log, stderr=log)

    def _answers(self) -> bool:
        if self._process and self._process.poll() is not None:
            pytest.fail(f"Milvus has ended, see {self._folder.parent}/milvus.log")
        with socket.socket() as connection:
            return connection.connect_ex((self._host, self._port)) == 0


class StandaloneMilvus(MilvusServer):
    """The server of PyPI's `milvus`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        # A leading 10.213 is as good as any; two test processes do not share a network.
        network = f"10.213.{os.getpid() % 256}"
        self._name, self._host = f"milvus{os.getpid()}", f"{network}.2"
        _ip("netns", "add", self._name)
        _ip("link", "add", self._name, "type", "veth", "peer", "eth0", "netns", self._name)
        _ip("address", "add", f"{network}.1/30", "dev", self._name)
        _ip("link", "set", self._name, "up")
        inside = ("-netns", self._name)
        _ip(*inside, "address", "add", f"{self._host}/30", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _ip(*inside, "link", "set", interface, "up")

    def close(self) -> None:
        """End it, and remove its network."""
        super().close()
        _ip("netns", "delete", self._name)

    def _open(self, log) -> subprocess.Popen:
        import milvus

        folder = str(self._folder)
        config = milvus.MilvusServerConfig(data_dir=folder, proxy_port=self._port)
        config.resolve()
        milvus._initialize_data_files(folder)  # extracts the program
        program = self._folder / "bin" / "milvus"
        environment = os.environ | {
            "DEPLOY_MODE": "STANDALONE",
            "MILVUS_RUN_DIR": f"{folder}/run",
            "LD_LIBRARY_PATH": str(program.parent),
        }
        # `ip` becomes the server: the process has the same id.
        command = ["ip", "netns", "exec", self._name, program, "run", "standalone"]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def milvus_server(folder: Path) -> MilvusServer:
    """The server that TEST_MILVUS names; not yet started."""
    is_standalone = os.environ.get("TEST_MILVUS") == "standalone"
    return (StandaloneMilvus if is_standalone else MilvusServer)(folder)
