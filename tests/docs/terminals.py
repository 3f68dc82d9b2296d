"""A terminal with bash and one with Python, in which a reader types the code of a page."""

from __future__ import annotations

import re
from pathlib import Path

import pexpect
from pexpect.replwrap import REPLWrapper

_TIMEOUT = 300  # seconds for one line; only against hanging
_RAISED = re.compile(
    r'^(Traceback \(most recent call last\):|  File "<stdin>", line)', re.MULTILINE
)


class Terminals:
    """Both start in `folder`; Python starts with the first line that is typed into it."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self._folder = folder
        # As in a plain terminal: no escape sequences, and the prompt of Python 3.11 in 3.13 too.
        self._environment = environment | {"TERM": "dumb", "PS1": "$ ", "PYTHON_BASIC_REPL": "1"}
        self._bash = REPLWrapper(
            self._spawn("bash", "--norc", "--noediting"),
            r"\$ ",
            "PS1='{}' PS2='{}' PROMPT_COMMAND=",
        )
        self._bash.run_command("failed=0; trap 'failed=1' ERR")
        self._python: REPLWrapper | None = None

    def bash(self, code: str) -> tuple[str, bool]:
        """What `code` prints, and whether all of its commands succeeded."""
        printed = self._bash.run_command(code.strip("\n"))
        failed = self._bash.run_command("echo $failed; failed=0").strip() != "0"
        return _unix(printed), not failed

    def python(self, code: str) -> tuple[str, bool]:
        """What `code` prints at Python's prompt, and whether nothing was raised."""
        if not self._python:
            self._python = REPLWrapper(
                self._spawn(".venv/bin/python", "-q"),
                ">>> ",
                "import sys; sys.ps1, sys.ps2 = {!r}, {!r}",
            )
        lines = code.strip("\n").split("\n")
        if lines[-1].startswith(" "):
            lines.append("")  # ends an indented block, as at any prompt
        printed = _unix(self._python.run_command("\n".join(lines) + "\n" * (not lines[-1])))
        return printed, not _RAISED.search(printed)

    def start(self, line: str, shown: str) -> None:
        """Type a command that runs until Ctrl-C into bash; wait until it has printed `shown`."""
        self._bash.child.sendline(line)
        self._bash.child.expect_exact(shown)

    def press_ctrl_c(self) -> None:
        """End the command that was started, and wait for bash's prompt."""
        self._bash.child.sendintr()
        self._bash.child.expect_exact(self._bash.prompt)

    def close(self) -> None:
        """End both; servers that were started in the background run on."""
        for repl in (self._bash, self._python):
            if repl:
                repl.child.sendeof()
                repl.child.expect([pexpect.EOF, pexpect.TIMEOUT])
                repl.child.close(force=True)

    def _spawn(self, command: str, *arguments: str) -> pexpect.spawn:
        return pexpect.spawn(
            command,
            list(arguments),
            cwd=str(self._folder),
            env=self._environment,
            echo=False,
            encoding="utf-8",
            timeout=_TIMEOUT,
            dimensions=(50, 200),
        )


def _unix(text: str) -> str:
    return text.replace("\r\n", "\n")
