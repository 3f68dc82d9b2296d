"""Search the gallery for image files. Run it through ``search.sh``."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from reverse_image_search.client import Client
from reverse_image_search.command_line import make_parser, positive_integer
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import BUILD_COMMAND, gallery_file
from reverse_image_search.terminal.command import (
    ERROR,
    FOUND,
    NOTHING_FOUND,
    TerminalError,
    cosine_similarity,
    run,
)
from reverse_image_search.terminal.contact_sheet import open_on_desktop, write_contact_sheet
from reverse_image_search.terminal.output import (
    Match,
    matches,
    printable,
    write_csv_row,
    write_json_list,
    write_text,
)
from reverse_image_search.terminal.search_files import FileAnswer, files_below, search_files


class Query(NamedTuple):
    """An image to search for."""

    name: str
    path: str  # of its file
    was_named: bool = True  # by the caller, and not found in a folder


class Result(NamedTuple):
    """What was found for a query."""

    query: Query
    matches: list[Match]  # best first
    problem: str  # why the query cannot be read, or empty
    thumbnail: bytes  # of the query, for a contact sheet
    neighbor_count: int  # that the index returned


def main(arguments: list[str] | None = None) -> int:
    """Search and print; returns the exit code."""
    options = _parse(arguments)
    return run("search.sh", lambda: search(options))


def search(options: argparse.Namespace) -> int:
    """Print what is found for each query; returns the exit code."""
    gallery = Gallery(gallery_file(options.output_dir))
    if options.format == "paths" and not gallery.paths(gallery.ids()[0]):
        raise TerminalError(
            f"the images of this gallery ({gallery.metadata.dataset}) are not files, so there are "
            "no paths. Use --json or --csv"
        )
    with contextlib.ExitStack() as stack:
        queries = [query for name in options.queries for query in _queries(name, stack)]
        return _search(options, gallery, queries)


def _search(options: argparse.Namespace, gallery: Gallery, queries: list[Query]) -> int:
    client = Client(options.url, timeout=60)
    answers = search_files(client, gallery, [os.fsencode(query.path) for query in queries])
    tally = _Tally(min(options.k, len(gallery)))
    # A progress bar between the lines of a table would be in the way.
    is_quiet = sys.stdout.isatty() or not sys.stderr.isatty() or len(queries) < 2
    with tqdm(answers, "search", len(queries), disable=is_quiet, unit=" images") as bar:
        results = (
            tally.count(_result(gallery, query, answer, options))
            for query, answer in zip(queries, bar, strict=True)
        )
        _WRITERS[options.format](results, options)
    return tally.report(len(queries))


class _Tally:
    """Counts results as they are written, and names queries that cannot be read."""

    def __init__(self, expected: int) -> None:
        self._expected = expected  # neighbors of each query
        self._found, self._unreadable, self._named_unreadable = 0, 0, 0

    def count(self, result: Result) -> Result:
        if result.problem:
            self._unreadable += 1
            self._named_unreadable += result.query.was_named
            print(f"search.sh: {printable(result.query.name)}: {result.problem}", file=sys.stderr)
        elif result.neighbor_count < self._expected:
            self._expected = 0  # said once
            print(
                f"search.sh: the index returns {result.neighbor_count} neighbors. For more, build "
                f"again with {BUILD_COMMAND} --top-k N",
                file=sys.stderr,
            )
        self._found += bool(result.matches)
        return result

    def report(self, queries: int) -> int:
        """The exit code."""
        if self._unreadable and queries > 1:
            text = f"search.sh: {self._unreadable} of {queries} files could not be read"
            print(text, file=sys.stderr)
        if self._named_unreadable or (self._unreadable == queries):
            return ERROR
        return FOUND if self._found else NOTHING_FOUND


def _queries(name: str, stack: contextlib.ExitStack) -> Iterator[Query]:
    if name == "-":
        yield Query(name, _copy_of(sys.stdin.buffer, stack))
    elif os.path.isdir(name):
        paths = files_below(name)
        if not paths:
            raise TerminalError(f"there are no files in {printable(name)}")
        yield from (Query(path, path, was_named=False) for path in paths)
    elif os.path.exists(name) and not os.path.isfile(name):  # a pipe, as of <(command)
        with open(name, "rb") as file:
            yield Query(name, _copy_of(file, stack))
    else:
        yield Query(name, name)


def _copy_of(stream: BinaryIO, stack: contextlib.ExitStack) -> str:
    """Path of a file with the content of `stream`, until the stack is closed."""
    path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "image")
    with open(path, "wb") as file:
        shutil.copyfileobj(stream, file)
    return path


def _result(
    gallery: Gallery, query: Query, answer: FileAnswer, options: argparse.Namespace
) -> Result:
    if answer.answer is None:
        return Result(query, [], answer.file.reason, b"", 0)
    ids, scores = answer.answer.ids[: options.k], answer.answer.scores[: options.k]
    is_above = scores >= options.threshold
    found = matches(gallery, ids[is_above], scores[is_above])
    return Result(query, found, "", answer.file.thumbnail, len(answer.answer.ids))


def _write_table(results: Iterable[Result], options: argparse.Namespace) -> None:
    for result in results:
        if result.problem:
            continue
        lines = [printable(result.query.name)]
        width = max((len(match.label or "") for match in result.matches), default=0)
        for match in result.matches:
            start = f"  {match.score:.3f}  {match.label or '':{width}}{'  ' * bool(width)}"
            if not match.paths:
                start += f"id {match.id}  "
            lines += [start + printable(name) for name in match.names()]
        if not result.matches:
            lines.append(f"  nothing with a score of {options.threshold:g} or more")
        write_text("\n".join(lines) + "\n")


def _write_paths(results: Iterable[Result], options: argparse.Namespace) -> None:
    end = "\0" if options.null else "\n"
    for result in results:
        write_text("".join(path + end for match in result.matches for path in match.paths))


def _write_json(results: Iterable[Result], _options: argparse.Namespace) -> None:
    write_json_list(
        {"query": result.query.name}
        | ({"error": result.problem} if result.problem else {})
        | {"matches": [match.as_json() for match in result.matches]}
        for result in results
    )


def _write_csv(results: Iterable[Result], _options: argparse.Namespace) -> None:
    write_csv_row(["query", "rank", "score", "id", "label", "path"])
    for result in results:
        for rank, match in enumerate(result.matches, 1):
            facts = result.query.name, rank, f"{match.score:.4f}", match.id, match.label
            for name in match.names():
                write_csv_row([*facts, name])


def _open(results: Iterable[Result], _options: argparse.Namespace) -> None:
    sheet = write_contact_sheet(
        (result.query.name, result.thumbnail, result.matches)
        for result in results
        if not result.problem
    )
    write_text(f"{sheet}\n")
    if not open_on_desktop(sheet):
        print("search.sh: no desktop to show it on; open the file in a browser", file=sys.stderr)


_WRITERS = {
    "table": _write_table,
    "paths": _write_paths,
    "json": _write_json,
    "csv": _write_csv,
    "open": _open,
}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.prog = "search.sh"
    parser.add_argument("queries", nargs="*", metavar="FILE|DIR|-")
    parser.add_argument("-k", type=positive_integer, default=10, metavar="N")
    parser.add_argument("--threshold", type=cosine_similarity, default=-1.0, metavar="SCORE")
    formats = parser.add_mutually_exclusive_group()
    for name in ("paths", "json", "csv", "open"):
        formats.add_argument(f"--{name}", action="store_const", const=name, dest="format")
    parser.add_argument("-0", action="store_true", dest="null")
    options = parser.parse_args(arguments)
    options.format = options.format or "table"
    if not options.queries:
        parser.error("name an image file, a folder, or - for standard input")
    if options.null and options.format != "paths":
        parser.error("-0 goes with --paths")
    return options


if __name__ == "__main__":
    sys.exit(main())
