"""One `InferenceServerClient` for each thread and process: it may not be shared between them."""

from __future__ import annotations

import os
import threading

import gevent
import gevent.ssl
from gevent.hub import set_hub
from tritonclient.http import InferenceServerClient


class _Connections:
    """The connections of one thread, kept until it ends."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.clients: dict[tuple[str, float], InferenceServerClient] = {}
        self._hub = gevent.get_hub()

    def __del__(self) -> None:
        """Free what gevent holds for a thread that ends: four file descriptors and a thread.

        Streamlit runs a page in a new thread each time.
        """
        if self.process != os.getpid() or self._hub.loop is None or self._hub.loop.default:
            return
        set_hub(self._hub)  # the ending thread may have forgotten it already
        for client in self.clients.values():
            client.close()
        self._hub.destroy(destroy_loop=True)
        self._hub.throw()  # or it is never freed: https://github.com/gevent/gevent/issues/1601


_this_thread = threading.local()


def of_this_thread() -> dict[tuple[str, float], InferenceServerClient]:
    """The connections of this thread, by address and timeout in seconds."""
    if not hasattr(_this_thread, "connections"):
        _this_thread.connections = _Connections()
    connections = _this_thread.connections
    if connections.process != os.getpid():  # forked: the connections belong to the parent
        gevent.reinit()
        connections.process = os.getpid()
        connections.clients.clear()
    return connections.clients


def add(url: str, timeout: float) -> InferenceServerClient:
    """Open a connection of this thread and keep it."""
    scheme, _, address = url.partition("://")
    client = of_this_thread()[url, timeout] = InferenceServerClient(
        address,
        connection_timeout=timeout,
        network_timeout=timeout,
        ssl=scheme == "https",
        # Without parameters: it trusts the system's authorities, besides those of certifi.
        ssl_context_factory=lambda: gevent.ssl.create_default_context(),
    )
    return client


def drop(url: str, timeout: float) -> None:
    """Close this thread's connection."""
    if client := of_this_thread().pop((url, timeout), None):
        client.close()
