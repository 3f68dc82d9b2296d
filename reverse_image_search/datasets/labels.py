"""Labels of images in folders: by folder, or from a CSV file."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from reverse_image_search.datasets.dataset import DatasetError
from reverse_image_search.gallery import display_path


def label_by_folder(
    paths: Sequence[bytes], folders: Sequence[bytes]
) -> Callable[[bytes], str | None]:
    """Label of a path: the topmost folder that not all `paths` share, if there are several."""
    if len(folders) > 1:
        tops = sorted((os.path.join(folder, b"") for folder in folders), key=len, reverse=True)

        def label_of(path: bytes) -> str | None:
            top = next((top for top in tops if path.startswith(top)), None)
            return display_path(os.path.basename(top[:-1])) if top else None
    else:
        top = os.path.join(folders[0], b"")
        inside = [os.path.dirname(path) for path in paths if path.startswith(top)] or [top]
        shared = os.path.join(os.path.commonpath(inside), b"")

        def label_of(path: bytes) -> str | None:
            first, slash, _ = path.removeprefix(shared).partition(b"/")
            return display_path(first) if slash and path.startswith(shared) else None

    several = len({label_of(path) for path in paths} - {None}) > 1
    return label_of if several else lambda _: None


def read_labels(file: Path, folders: Sequence[bytes]) -> dict[bytes, str]:
    """Labels by absolute path from a CSV file: path and label in each line.

    Relative paths start at one of the folders, or at the file's own.

    Raises a DatasetError if the file cannot be read.
    """
    tops = [*folders, os.fsencode(os.path.realpath(file.parent))]
    labels: dict[bytes, str] = {}
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            for row in csv.reader(lines):
                if not row:
                    continue
                if len(row) != 2:
                    raise DatasetError(f"{file} has a line that is not path,label: {row}")
                path, label = os.fsencode(row[0]), display_path(os.fsencode(row[1]))
                labels |= {os.path.normpath(os.path.join(top, path)): label for top in tops}
    except (OSError, csv.Error) as error:
        raise DatasetError(f"the labels in {file} cannot be read ({error})") from error
    return labels
