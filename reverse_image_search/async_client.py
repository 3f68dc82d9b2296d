"""The client for programs that run on asyncio and ask many queries at a time.

    async with AsyncClient("http://localhost:8000") as client:
        answers = await asyncio.gather(*(client.search([image]) for image in images))

Triton puts queries that arrive together into one batch, so asking many at once costs little more
than asking one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from reverse_image_search.client import Client, Neighbors


class AsyncClient:
    """`Client`, with the same methods to be awaited; made and closed by ``async with``.

    Parameters
    ----------
    url, timeout, one_call : as for `Client`
    connections : queries that may be on their way at the same time; more wait for their turn
    """

    def __init__(
        self,
        url: str = "http://localhost:8000",
        timeout: float = 10.0,
        one_call: bool = False,
        connections: int = 32,
    ) -> None:
        self._client = Client(url, timeout, one_call)
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="triton")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_error) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def embed(self, images: Sequence | np.ndarray) -> np.ndarray:
        """See `Client.embed`."""
        return await self._run(self._client.embed, images)

    async def find_similar(self, embeddings: np.ndarray) -> Neighbors:
        """See `Client.find_similar`."""
        return await self._run(self._client.find_similar, embeddings)

    async def search(self, images: Sequence | np.ndarray) -> Neighbors:
        """See `Client.search`."""
        return await self._run(self._client.search, images)

    async def _run(self, method: Callable, argument: Sequence | np.ndarray):
        return await asyncio.get_running_loop().run_in_executor(self._threads, method, argument)
