"""Search a gallery for many image files."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from reverse_image_search.client.client import Client
from reverse_image_search.client.search import Answer, search_gallery_for_all
from reverse_image_search.gallery import Gallery
from reverse_image_search.image_reader import ImageReader, ReadFile

# Images of one size share a request, and the server batches requests that wait together.
_IMAGES_AT_ONCE = 16
_REQUESTS_IN_FLIGHT = 4


class FileAnswer(NamedTuple):
    """What was found for one file, or why it could not be read."""

    file: ReadFile
    answer: Answer | None  # None if the file could not be read


def search_files(client: Client, gallery: Gallery, paths: Sequence[bytes]) -> Iterator[FileAnswer]:
    """Search for image files, some at a time; answers in the order of `paths`.

    Raises
    ------
    WrongAnswerError : the served models and the gallery do not belong together
    TritonError : the server did not answer
    """

    def search(files: list[ReadFile]) -> list[FileAnswer]:
        images = [file.photo.pixels for file in files if file.photo]
        answers = iter(search_gallery_for_all(client, gallery, images) if images else [])
        return [FileAnswer(file, next(answers) if file.photo else None) for file in files]

    processes = min(len(paths), len(os.sched_getaffinity(0)))
    with ImageReader(processes) as reader, ThreadPoolExecutor(_REQUESTS_IN_FLIGHT) as executor:
        files = reader.read_all(paths)
        searches: deque = deque()
        for start in range(0, len(paths), _IMAGES_AT_ONCE):
            part = [next(files) for _ in paths[start : start + _IMAGES_AT_ONCE]]
            searches.append(executor.submit(search, part))
            if len(searches) > _REQUESTS_IN_FLIGHT:
                yield from searches.popleft().result()
        while searches:
            yield from searches.popleft().result()


def files_below(folder: str) -> list[str]:
    """Regular files of a folder and its sub-folders, by name; hidden ones are left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (os.path.join(parent, name) for name in sorted(names) if not name.startswith("."))
        found += [path for path in paths if os.path.isfile(path)]
    return found
