"""Clients that search again and again while something is broken."""

from __future__ import annotations

import threading
import time
from collections import Counter

from reverse_image_search.client import Client, Neighbors, TritonError
from tests.faults.conftest import is_right
from tests.running import wait_until


class Load:
    """Threads that search again and again, and count what they get.

    Attributes
    ----------
    known : answers any of which is right for a search that begins now
    pause : seconds between two searches of a thread
    last_error : when the last request failed, of `time.monotonic`
    longest_error : seconds that the slowest of the failed requests took
    """

    def __init__(
        self, client: Client, queries, *known: Neighbors, threads: int = 8, pause: float = 0
    ) -> None:
        self.answers = 0
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.known = known
        self.last_error = self.longest_error = 0.0
        self.pause = pause
        self._client, self._queries = client, queries
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._search) for _ in range(threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.answers > 5 * len(self._threads), "some answers")
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _search(self) -> None:
        while not self._stop.is_set():
            known, start = self.known, time.monotonic()
            try:
                answer = self._client.search(self._queries)
            except TritonError as error:
                self.errors[str(error)] += 1
                self.last_error = time.monotonic()
                self.longest_error = max(self.longest_error, self.last_error - start)
                time.sleep(0.05)  # leave the processors to the server that starts
            except Exception as error:
                self.wrong.append(repr(error))
            else:
                self.answers += 1
                if not any(is_right(answer, each) for each in known):
                    self.wrong.append(str(answer))
                time.sleep(self.pause)
