"""Embed image files with the served encoder, in numbered parts. Run it through ``embed.sh``."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from pathlib import Path

from tqdm import tqdm

from reverse_image_search.command_line import make_parser, positive_integer
from reverse_image_search.terminal.command import ERROR, FOUND, run
from reverse_image_search.terminal.embed_files import Servers, embed_files
from reverse_image_search.terminal.embedding_job import Job
from reverse_image_search.terminal.output import printable


def main(arguments: list[str] | None = None) -> int:
    """Embed and write; returns the exit code."""
    options = _parse(arguments)
    return run("embed.sh", lambda: _embed(options))


def _embed(options: argparse.Namespace) -> int:
    servers = Servers(options.urls, options.in_flight)
    job = Job.open(options, servers.encoder_id)
    first, step = options.share
    mine = job.parts()[first - 1 :: step]
    left = [part for part in mine if not job.is_done(part)]
    total, count = (sum(len(job.paths_of(part)) for part in parts) for parts in (mine, left))
    if len(left) < len(mine):
        print(f"embed.sh: {len(mine) - len(left)} of {len(mine)} parts are there", file=sys.stderr)
    start, unreadable = time.monotonic(), 0
    paths = (path for part in left for path in job.paths_of(part))
    bar = tqdm(total=total, initial=total - count, unit=" images", disable=None)
    with bar, contextlib.closing(embed_files(servers, paths)) as embedded:
        for part in left:
            files = []
            for file in itertools.islice(embedded, len(job.paths_of(part))):
                files.append(file)
                bar.update()
                if file.reason:
                    unreadable += 1
                    print(f"embed.sh: {printable(file.path)}: {file.reason}", file=sys.stderr)
            servers.check()
            job.write(part, files)
    seconds = time.monotonic() - start
    print(
        f"embed.sh: {count - unreadable:,} images embedded in {seconds:.1f} s, "
        f"{count / seconds:.1f} images/s; {unreadable:,} files could not be read",
        file=sys.stderr,
    )
    return ERROR if count and unreadable == count else FOUND


def _share(text: str) -> tuple[int, int]:
    """Type of an option."""
    first, _, count = text.partition("/")
    if first.isdecimal() and count.isdecimal() and 1 <= int(first) <= int(count):
        return int(first), int(count)
    raise argparse.ArgumentTypeError(f"{text!r} is not I/N, such as 1/4")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="embed.sh", description=__doc__)
    default = make_parser(None).get_default("url")
    parser.add_argument("images", nargs="*", metavar="FILE|DIR")
    parser.add_argument("--into", type=Path, metavar="FOLDER")
    parser.add_argument("--url", action="append", dest="urls")
    parser.add_argument("--part-size", type=positive_integer, default=10_000, metavar="N")
    parser.add_argument("--in-flight", type=positive_integer, default=2, metavar="N")
    parser.add_argument("--share", type=_share, default=(1, 1), metavar="I/N")
    options = parser.parse_args(arguments)
    if not options.into:
        parser.error("name a folder for the embeddings: --into FOLDER")
    options.urls = options.urls or [default]
    return options


if __name__ == "__main__":
    sys.exit(main())
