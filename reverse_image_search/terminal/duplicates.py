"""Find near-duplicates in the gallery. Run it through ``find_duplicates.sh``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

from tqdm import tqdm

from reverse_image_search.client import Client
from reverse_image_search.client.duplicates import DuplicateGroup, find_duplicates
from reverse_image_search.client.same_photo import (
    REQUIREMENTS,
    SamePhotoCheck,
    can_check,
    is_installed,
)
from reverse_image_search.command_line import make_parser
from reverse_image_search.gallery import Gallery
from reverse_image_search.layout import BUILD_COMMAND, gallery_file
from reverse_image_search.terminal.command import (
    FOUND,
    NOTHING_FOUND,
    TerminalError,
    cosine_similarity,
    run,
)
from reverse_image_search.terminal.output import (
    Match,
    matches,
    printable,
    write_csv_row,
    write_json_list,
    write_text,
)


class Copy(NamedTuple):
    """A file of a group, or an image of it that is not of files."""

    name: str
    image: Match
    is_exact: bool  # whether its content is that of the copy before


def main(arguments: list[str] | None = None) -> int:
    """Find and print; returns the exit code."""
    parser = make_parser(__doc__)
    parser.prog = "find_duplicates.sh"
    parser.add_argument("--threshold", type=cosine_similarity, metavar="SCORE")
    formats = parser.add_mutually_exclusive_group()
    for name in ("json", "csv"):
        formats.add_argument(f"--{name}", action="store_const", const=name, dest="format")
    options = parser.parse_args(arguments)
    return run(parser.prog, lambda: _print_duplicates(options))


def _print_duplicates(options: argparse.Namespace) -> int:
    gallery = Gallery(gallery_file(options.output_dir))
    threshold = options.threshold
    if threshold is None:
        threshold = gallery.metadata.duplicate_threshold
    if threshold is None:
        raise TerminalError(
            "this gallery has no threshold of its own. Name one, such as --threshold 0.95, or "
            f"build again with {BUILD_COMMAND}"
        )
    is_checked = options.threshold is None and can_check(gallery)
    if is_checked and not is_installed():
        raise TerminalError(
            f"OpenCV is not installed. Install {REQUIREMENTS}, or name a score, such as "
            f"--threshold {threshold:.3f}: then scores alone decide, and cropped copies are missed"
        )
    client = Client(options.url, timeout=60)
    with (
        _progress_bar("search", "images") as search_bar,
        _progress_bar("compare", "pairs") as pair_bar,
    ):
        groups = find_duplicates(
            client,
            gallery,
            threshold,
            partial(_show, search_bar),
            SamePhotoCheck(gallery, partial(_show, pair_bar)) if is_checked else None,
        )
    _WRITERS[options.format](gallery, groups)
    copies = sum(len(list(_copies(gallery, group))) for group in groups)
    found = f"{len(groups):,} groups of {copies:,} images" if groups else "no near-duplicates"
    print(
        f"find_duplicates.sh: {found} among {len(gallery):,}, "
        f"{'of the same photo' if is_checked else f'with a score of {threshold:.3f} or more'}; "
        "nothing was deleted",
        file=sys.stderr,
    )
    return FOUND if groups else NOTHING_FOUND


def _progress_bar(name: str, unit: str) -> tqdm:
    return tqdm(desc=name, unit=f" {unit}", disable=None, leave=False, delay=0.1)


def _show(bar: tqdm, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


def _copies(gallery: Gallery, group: DuplicateGroup) -> Iterator[Copy]:
    """Files, or images that are not of files; the one to keep first."""
    for image in matches(gallery, group.ids, group.scores):
        for number, name in enumerate(image.names()):
            yield Copy(name, image, is_exact=number > 0)


def _write_table(gallery: Gallery, groups: Iterable[DuplicateGroup]) -> None:
    for number, group in enumerate(groups, 1):
        lines = [f"group {number}"]
        for copy in _copies(gallery, group):
            mark = "exact" if copy.is_exact else f"{copy.image.score:.3f}"
            size = f"{copy.image.width} x {copy.image.height}"
            lines.append(
                f"  {'keep' if len(lines) == 1 else mark:5}  {size:>11}  {printable(copy.name)}"
            )
        write_text("\n".join(lines) + "\n")


def _write_json(gallery: Gallery, groups: Iterable[DuplicateGroup]) -> None:
    found = (matches(gallery, group.ids, group.scores) for group in groups)
    write_json_list(
        {"keep": kept.as_json(), "duplicates": [image.as_json() for image in others]}
        for kept, *others in found
    )


def _write_csv(gallery: Gallery, groups: Iterable[DuplicateGroup]) -> None:
    write_csv_row(["group", "keep", "score", "id", "width", "height", "path"])
    for number, group in enumerate(groups, 1):
        for position, (name, image, _is_exact) in enumerate(_copies(gallery, group)):
            keep = "yes" if position == 0 else "no"
            size = image.width, image.height
            write_csv_row([number, keep, f"{image.score:.4f}", image.id, *size, name])


_WRITERS = {None: _write_table, "json": _write_json, "csv": _write_csv}


if __name__ == "__main__":
    sys.exit(main())
