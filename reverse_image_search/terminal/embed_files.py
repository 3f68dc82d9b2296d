"""Embed many image files with the served encoder, on all replicas at once."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import numpy as np

from reverse_image_search.client import Client, TritonError
from reverse_image_search.contract import ENCODER_ID_PARAMETER, IMAGE_ENCODER, MAX_BATCH_SIZE
from reverse_image_search.image_reader import ImageReader, ReadFile
from reverse_image_search.terminal.command import TerminalError

# In a request, of images of one size: the server can batch only those. With more, an encoder on a
# CPU takes longer for each.
_PIXELS_AT_ONCE = 250_000
_PATIENCE = 60.0  # seconds that no server may answer
_PAUSE = 0.5  # seconds before a request is sent again
Result = TypeVar("Result")


class EmbeddedFile(NamedTuple):
    """An image file and its embedding, or why it could not be read."""

    path: str
    embedding: np.ndarray | None  # (D,) float32
    reason: str  # empty if it could be read


class Servers:
    """Replicas that serve one encoder, with a bounded number of requests at each.

    Parameters
    ----------
    in_flight : requests at a time for each of `urls`

    Raises
    ------
    TerminalError : the servers have different encoders
    TritonError : a server did not answer
    """

    def __init__(self, urls: Sequence[str], in_flight: int) -> None:
        self._clients = [Client(url, timeout=60) for url in urls]
        self.in_flight = in_flight * len(urls)
        self.encoder_id = self._encoder_id(patience=0)
        self._free: SimpleQueue[Client] = SimpleQueue()
        for _ in range(in_flight):
            for client in self._clients:
                self._free.put(client)

    def embed(self, images: list[np.ndarray]) -> np.ndarray:
        """(n, D) float32; a server that does not answer is replaced by another one."""
        return _patiently(partial(self._embed, images), _PATIENCE)

    def check(self) -> None:
        """Raise a `TerminalError` if another encoder is served by now."""
        if (now := self._encoder_id(_PATIENCE)) != self.encoder_id:
            raise TerminalError(f"the servers' encoder was {self.encoder_id} and is {now} now")

    def _encoder_id(self, patience: float) -> str:
        found = {}  # by encoder, a server
        for client in self._clients:
            config = _patiently(partial(client.model_config, IMAGE_ENCODER.name), patience)
            parameter = config.get("parameters", {}).get(ENCODER_ID_PARAMETER, {})
            found[parameter.get("string_value", "unknown")] = client.url
        if len(found) > 1:
            raise TerminalError(f"the servers have different encoders: {found}")
        return next(iter(found))

    def _embed(self, images: list[np.ndarray]) -> np.ndarray:
        client = self._free.get()
        try:
            return client.embed(images)
        finally:
            self._free.put(client)


def _patiently(ask: Callable[[], Result], patience: float) -> Result:
    """What `ask` returns; after an error of the server it is called again, for some seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return ask()
        except TritonError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_PAUSE)


def embed_files(servers: Servers, paths: Iterable[str]) -> Generator[EmbeddedFile, None, None]:
    """Embed image files, many at a time and a bounded number ahead, in the order of `paths`."""
    threads = ThreadPoolExecutor(servers.in_flight)
    # Enough that requests are full, although images of other sizes come in between.
    most_ahead = 16 * servers.in_flight * _PIXELS_AT_ONCE
    pixels_ahead = 0
    ahead: deque[tuple[ReadFile, _Request | None]] = deque()
    waiting: dict[tuple[int, ...], _Request] = {}  # requests that are not full yet, by image size

    def send(request: _Request) -> None:
        if waiting.get(request.images[0].shape) is request:
            del waiting[request.images[0].shape]
            request.rows = threads.submit(servers.embed, request.images)

    def next_file() -> EmbeddedFile:
        nonlocal pixels_ahead
        file, request = ahead.popleft()
        if request is None:
            return EmbeddedFile(os.fsdecode(file.path), None, file.reason)
        send(request)
        pixels_ahead -= request.pixels_of_an_image
        return EmbeddedFile(os.fsdecode(file.path), request.take(), "")

    try:
        with ImageReader(thumbnails=False) as reader:
            for file in reader.read_all(map(os.fsencode, paths)):
                request = None
                if file.photo:
                    request = waiting.setdefault(file.photo.pixels.shape, _Request())
                    request.images.append(file.photo.pixels)
                    pixels_ahead += request.pixels_of_an_image
                    if request.is_full:
                        send(request)
                ahead.append((replace(file, photo=None), request))
                while pixels_ahead > most_ahead:
                    yield next_file()
            for request in list(waiting.values()):
                send(request)
            while ahead:
                yield next_file()
    finally:
        threads.shutdown(cancel_futures=True)


class _Request:
    """Images of one size, and their embeddings, which are taken in the same order."""

    def __init__(self) -> None:
        self.images: list[np.ndarray] = []
        self.rows: Future[np.ndarray]
        self._taken = 0

    @property
    def pixels_of_an_image(self) -> int:
        height, width, _ = self.images[0].shape
        return height * width

    @property
    def is_full(self) -> bool:
        most = min(MAX_BATCH_SIZE, _PIXELS_AT_ONCE // self.pixels_of_an_image)
        return len(self.images) >= most

    def take(self) -> np.ndarray:
        """The next embedding (D,); waits for the answer."""
        self._taken += 1
        return self.rows.result()[self._taken - 1]
