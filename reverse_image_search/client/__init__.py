"""Client of the two served models: images in, ids and scores out.

from reverse_image_search.client import Client

client = Client("http://localhost:8000")
neighbors = client.search([Image.open("boot.png")])
"""

from reverse_image_search.client.client import Client, Neighbors
from reverse_image_search.client.errors import (
    RequestRejectedError,
    ServerNotReadyError,
    ServerTimeoutError,
    ServerUnreachableError,
    TritonError,
)

__all__ = [
    "Client",
    "Neighbors",
    "RequestRejectedError",
    "ServerNotReadyError",
    "ServerTimeoutError",
    "ServerUnreachableError",
    "TritonError",
]
