"""Options and tables of the commands."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from reverse_image_search.layout import REPOSITORY_ROOT


def make_parser(description: str | None, **numbers: float | type) -> argparse.ArgumentParser:
    """Parser of ``--url``, ``--output-dir``, and one option above 0 for each of `numbers`: its
    default value, or its type where it has none.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    local = f"http://127.0.0.1:{os.environ.get('TRITON_HTTP_PORT', 8000)}"
    url = os.environ.get("TRITON_URL") or local
    folder = Path(os.environ.get("OUTPUT_DIR") or REPOSITORY_ROOT)
    parser.add_argument("--url", default=url, help="address of the server")
    parser.add_argument("--output-dir", type=Path, default=folder, help="of the served build")
    for name, number in numbers.items():
        kind, default = (number, None) if isinstance(number, type) else (type(number), number)
        option, word = f"--{name.replace('_', '-')}", "integer" if kind is int else "number"
        positive = number_type(kind, lambda number: number > 0, f"a positive {word}")
        parser.add_argument(option, type=positive, default=default, metavar="N")
    return parser


def positive_integer(text: str) -> int:
    """Type of an option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


def number_type(
    kind: type, is_allowed: Callable[[float], bool], wanted: str
) -> Callable[[str], float]:
    """Type of an option whose numbers `is_allowed` accepts; `wanted` says in words which are."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if is_allowed(number := kind(text)):
                return number
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse


def print_table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table with aligned columns; floats below 100 have two decimal places."""
    table = [[_text(cell) for cell in row] for row in (columns, ["---"] * len(columns), *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (" | ".join(map(str.ljust, row, widths)) for row in table)
    print("", *(f"| {line} |" for line in lines), sep="\n")


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.2f}" if abs(cell) < 100 else f"{cell:.0f}"
    return str(cell)
