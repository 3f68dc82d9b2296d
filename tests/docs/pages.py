"""Run the code blocks of a page in their order, and compare what they print with the page.

- `bash` and `python` blocks are typed into a terminal each. What a block prints stands in the
  `text`, `json` or `protobuf` block behind it; a block without one prints nothing.
- `...` on the page stands for anything.
- Figures must be those of the page, unless a comment before the output says otherwise:
  ``<!-- figures: within a factor of 10 -->``, ``<!-- figures: 0.5 to 3 -->``, or
  ``<!-- figures: any -->``.
- A block whose first line starts with ``# needs`` is not run, and says why.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from sybil import Document, Example, Region
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer

from tests.docs.terminals import Terminals

_OUTPUT_LANGUAGES = ("text", "json", "protobuf")
_NOT_RUN = "# needs "
_NUMBER = r"(?<!\w)\d+(?:\.\d+)?(?:e-?\d+)?"  # not a part of a name
ALLOWED = re.compile(
    r"any|within a factor of (?P<factor>[\d.]+)|(?P<low>[\d.]+) to (?P<high>[\d.]+)"
)


class Page:
    """One page.

    Parameters
    ----------
    ports : a free port for each one on the page
    done : blocks that were run elsewhere
    """

    def __init__(self, path: Path, terminals: Terminals, ports: dict[str, str], done: set[str]):
        self.executed = self.not_executed = 0
        self._terminals, self._done = terminals, done
        self._there, self._back = ports, {real: page for page, real in ports.items()}
        self._printed: str | None = ""  # by the last block, not seen on the page yet; None: not run
        self._allowed: re.Match | None = None
        parsers = [
            *(CodeBlockParser(language, self._run) for language in ("bash", "python")),
            *(CodeBlockParser(language, self._compare) for language in _OUTPUT_LANGUAGES),
            self._figures,
        ]
        self._document = Document.parse(str(path), *parsers)

    def run(self) -> None:
        """Raise SybilFailure, with the line, where the page and what happens differ."""
        example = None
        for example in self._document:
            example.evaluate()
        if example and (message := self._left_over()):
            raise AssertionError(f"{example.path}, after line {example.line}: {message}")

    def _figures(self, document: Document) -> list[Region]:
        lexer = DirectiveInHTMLCommentLexer("figures")
        return [
            Region(region.start, region.end, region.lexemes["arguments"].strip(), self._allow)
            for region in lexer(document)
        ]

    def _allow(self, example: Example) -> str | None:
        self._allowed = ALLOWED.fullmatch(example.parsed)
        return None if self._allowed else f"figures: {example.parsed!r} is none of the forms"

    def _run(self, example: Example) -> str | None:
        if message := self._left_over():
            return f"before this block: {message}"
        if example.parsed.startswith(_NOT_RUN):
            self.not_executed += 1
            self._printed = None
            return None
        self.executed += 1
        if example.parsed.strip() in self._done:
            return None
        language = example.region.lexemes["arguments"]
        typed: Callable = getattr(self._terminals, language)
        printed, succeeded = typed(_replace(example.parsed, self._there))
        self._printed = _replace(printed, self._back)
        return None if succeeded else f"failed, and printed:\n{self._printed}"

    def _compare(self, example: Example) -> str | None:
        printed, self._printed = self._printed, ""
        allowed, self._allowed = self._allowed, None
        if printed is None:
            return None
        return difference(example.parsed, printed, allowed)

    def _left_over(self) -> str | None:
        printed, self._printed = self._printed or "", ""
        return f"the page does not show what was printed:\n{printed}" if printed.strip() else None


def difference(shown: str, printed: str, allowed: re.Match | None = None) -> str | None:
    """How `printed` differs from what the page shows; None if it does not."""
    pattern, figures = "", []
    for part in re.split(rf"(\.\.\.|\s+|{_NUMBER})", shown.strip()):
        if part == "...":
            pattern += r"[\s\S]*?"
        elif part.isspace():
            pattern += r"\s+"
        elif allowed and re.fullmatch(_NUMBER, part):
            pattern += f"({_NUMBER})"
            figures.append(float(part))
        else:
            pattern += re.escape(part)
    match = re.fullmatch(pattern, printed.strip())
    if not match:
        return f"the page shows\n\n{shown}\nprinted was\n\n{printed}"
    for figure, group in zip(figures, match.groups(), strict=True):
        low, high = _range(figure, allowed)
        if not low <= float(group) <= high:
            return f"{group} is not between {low:g} and {high:g}:\n{printed}"
    return None


def _range(figure: float, allowed: re.Match) -> tuple[float, float]:
    if allowed["factor"]:
        return figure / float(allowed["factor"]), figure * float(allowed["factor"])
    return float(allowed["low"] or 0), float(allowed["high"] or "inf")


def _replace(text: str, ports: dict[str, str]) -> str:
    return re.sub(r"\b\d{4,5}\b", lambda number: ports.get(number[0], number[0]), text)
