"""A Milvus server for tests, in a process of its own: that of Milvus Lite, on 127.0.0.1."""

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
        self._folder = folder
        (self._port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen | None = None

    def start(self) -> None:
        """Return when it accepts connections."""
        module = [sys.executable, "-m", "milvus_lite", "server"]
        options = [f"--data-dir={self._folder}", "--host=127.0.0.1", f"--port={self._port}"]
        with (self._folder.parent / "milvus.log").open("a") as log:
            # In the environment, pymilvus would take it for a setting of its own.
            environment = {k: v for k, v in os.environ.items() if k != "MILVUS_URI"}
            self._process = subprocess.Popen(
                [*module, *options], env=environment, stdout=log, stderr=log
            )
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

    def _answers(self) -> bool:
        if self._process and self._process.poll() is not None:
            pytest.fail(f"Milvus has ended, see {self._folder.parent}/milvus.log")
        with socket.socket() as connection:
            return connection.connect_ex(("127.0.0.1", self._port)) == 0
