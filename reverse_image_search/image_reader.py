"""Read one's own image files in processes of their own.

    with ImageReader() as reader:
        for file in reader.read_all(paths):
            print(file.reason or file.photo.size)

A decoder that crashes, hangs or takes too much memory costs the file that it met, nothing else, and
Python's lock is not shared with whoever uses the pixels.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import signal
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue

from PIL import Image

from reverse_image_search.first_frame import ImageFileError
from reverse_image_search.gallery import make_thumbnail
from reverse_image_search.image_file import OWN_FILES, Photo, check_size, read_image
from reverse_image_search.layout import REPOSITORY_ROOT

_MAX_MEMORY = 2 * 2**30  # bytes, of one process: 150 megapixels in a color space of four channels
_MAX_SECONDS = 60  # for one file
_AHEAD = 4  # files that each process may be ahead of their user


@dataclass(frozen=True)
class ReadFile:
    """What a file holds, or the reason why it could not be read."""

    path: bytes
    reason: str = ""  # empty if it could be read
    size: int = 0  # bytes
    modified_ns: int = 0
    sha256: bytes = b""  # of the content
    photo: Photo | None = None  # None as well where the content was known before
    thumbnail: bytes = b""


class ImageReader:
    """Processes that read image files; close it, or use it in a ``with`` statement.

    Parameters
    ----------
    processes : how many; the default is one for each processor
    thumbnails : make thumbnails, too, which takes longer than to decode a small photo
    """

    def __init__(self, processes: int | None = None, thumbnails: bool = True) -> None:
        count = processes or len(os.sched_getaffinity(0))
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for _ in range(count):
            self._idle.put(_Process(thumbnails))
        self._threads = ThreadPoolExecutor(count)
        self._window = _AHEAD * count

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().end()

    def read(self, path: bytes, is_known: Callable[[bytes], bool] = lambda _: False) -> ReadFile:
        """Read one file; it is not decoded if `is_known` of its SHA-256."""
        process = self._idle.get()
        try:
            return process.read(path, is_known)
        finally:
            self._idle.put(process)

    def read_all(
        self, paths: Iterable[bytes], is_known: Callable[[bytes], bool] = lambda _: False
    ) -> Iterator[ReadFile]:
        """Read files at the same time, a few ahead; yields them in the order of `paths`."""
        window: deque = deque()
        for path in paths:
            window.append(self._threads.submit(self.read, path, is_known))
            if len(window) == self._window:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


class _Process:
    """One process, started when it is first needed and again when it has died."""

    def __init__(self, thumbnails: bool) -> None:
        self._thumbnails = thumbnails
        self._popen: subprocess.Popen | None = None
        self._connection: Connection

    def read(self, path: bytes, is_known: Callable[[bytes], bool]) -> ReadFile:
        if self._popen is None:
            self._start()
        try:
            self._connection.send(path)
            answer = self._receive()
            if isinstance(answer, bytes):  # a digest
                self._connection.send(is_known(answer))
                answer = self._receive()
            assert isinstance(answer, ReadFile)
            return answer
        except TimeoutError:
            self.end()
            return ReadFile(path, f"Decoding it takes longer than {_MAX_SECONDS} seconds.")
        except (EOFError, OSError):
            self.end()
            return ReadFile(path, "Its decoder crashed: the file is damaged.")

    def end(self) -> None:
        """Kill the process, if it runs."""
        if self._popen:
            self._popen.kill()
            self._popen.wait()
            self._connection.close()
            self._popen = None

    def _start(self) -> None:
        self._connection, theirs = Pipe()
        code = (
            f"import sys; sys.path.insert(0, {str(REPOSITORY_ROOT)!r}); "
            f"from reverse_image_search.image_reader import serve; "
            f"serve({theirs.fileno()}, {self._thumbnails})"
        )
        command = [sys.executable, "-I", "-c", code]
        self._popen = subprocess.Popen(
            command, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self._receive()  # an EOFError here is no file's fault

    def _receive(self) -> ReadFile | bytes:
        if not self._connection.poll(_MAX_SECONDS):
            raise TimeoutError
        return self._connection.recv()


def serve(descriptor: int, thumbnails: bool) -> None:
    """Read the files that the other end of a connection asks for, until that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the other end's to act on
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_MEMORY, _MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    Image.MAX_IMAGE_PIXELS = OWN_FILES.max_pixels
    connection = Connection(descriptor)
    connection.send(b"ready")
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            path = connection.recv()
            try:
                answer = _read(path, connection, thumbnails)
            except ImageFileError as error:
                answer = ReadFile(path, str(error))
            except OSError as error:
                answer = ReadFile(path, f"{error.strerror or error}.")
            connection.send(answer)


def _read(path: bytes, connection: Connection, thumbnails: bool) -> ReadFile:
    # Opening a FIFO does not wait for a writer then.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        facts = os.fstat(file.fileno())  # before reading: a change during it is seen next time
        if not stat.S_ISREG(facts.st_mode):
            raise ImageFileError("It is not a regular file.")
        check_size(facts.st_size, OWN_FILES)
        data = file.read()
    digest = hashlib.sha256(data).digest()
    connection.send(digest)
    is_known = connection.recv()
    photo = None if is_known else read_image(data, limits=OWN_FILES)
    thumbnail = make_thumbnail(photo.pixels) if photo and thumbnails else b""
    return ReadFile(path, "", facts.st_size, facts.st_mtime_ns, digest, photo, thumbnail)
