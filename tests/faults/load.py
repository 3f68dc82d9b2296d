"""Clients that search without pause while something is broken."""

from __future__ import annotations

import threading
import time
from collections import Counter

from reverse_image_search.client import Client, TritonError
from tests.faults.conftest import is_right
from tests.running import wait_until


class Load:
    """Threads that search without pause, and count what they get."""

    def __init__(self, client: Client, queries, known, threads: int = 8) -> None:
        self.answers = 0
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._client, self._queries, self._known = client, queries, known
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
            try:
                answer = self._client.search(self._queries)
            except TritonError as error:
                self.errors[str(error)] += 1
                time.sleep(0.05)  # leave the processors to the server that starts
            except Exception as error:
                self.wrong.append(repr(error))
            else:
                self.answers += 1
                if not is_right(answer, self._known):
                    self.wrong.append(str(answer))
