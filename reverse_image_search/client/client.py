"""Client of the two served models: images in, ids and scores out.

    client = Client("http://localhost:8000")
    neighbors = client.search([Image.open("boot.png")])
    neighbors.ids, neighbors.scores    # (1, K) each, best first

Tensors travel in the binary form of the inference protocol, made and read by ``tritonclient``
(https://github.com/triton-inference-server/client); urllib3 keeps the connections. One client
may be shared by any number of threads, which tritonclient's own transport does not allow.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import itertools
import json
import random
import socket
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import urllib3
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException

from reverse_image_search import contract
from reverse_image_search.client.image_file import to_rgb
from reverse_image_search.layout import BUILD_COMMAND, START_COMMAND

# A photo's longest side in pixels, above which the client shrinks it before it is sent: the
# encoders look at 28 to 224 pixels, and a 12-megapixel photo would travel as 144 MB of FP32.
MAX_SIDE = 512

_ATTEMPTS = 3
_FIRST_PAUSE = 0.1  # seconds before the second attempt, doubled before the third
_HEADER_LENGTH = "Inference-Header-Content-Length"


class TritonError(Exception):
    """The search could not be answered; the message says why and what to do next."""


class ServerUnreachableError(TritonError):
    """Nothing answers at the server's address."""


class ServerTimeoutError(TritonError):
    """The server took longer than the client's timeout."""


class ServerNotReadyError(TritonError):
    """The server is up, but a model is missing or still loading."""


class RequestRejectedError(TritonError):
    """The server answered with an error of its own."""


class Neighbors(NamedTuple):
    """The nearest gallery images of n queries, best first."""

    ids: np.ndarray  # (n, K) int64
    scores: np.ndarray  # (n, K) float32, cosine similarity, falling


class Client:
    """Talks to a running Triton; safe to share between threads.

    Parameters
    ----------
    url : address of Triton's HTTP endpoint
    timeout : seconds that one request may take, its further attempts included
    one_call : search through the ensemble `image_search`, where the server was started with it
    """

    def __init__(
        self, url: str = "http://localhost:8000", timeout: float = 10.0, one_call: bool = False
    ) -> None:
        self.url = url.rstrip("/")
        if "://" not in self.url:
            self.url = f"http://{self.url}"
        self.timeout = timeout
        self.one_call = one_call
        self._pool = urllib3.PoolManager(maxsize=64, block=False, retries=False)
        self._pool.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def embed(self, images: Sequence | np.ndarray) -> np.ndarray:
        """Embed images with `image_encoder`.

        Parameters
        ----------
        images : a list of Pillow images or of (height, width[, 3]) uint8 arrays, of any sizes;
            or one array: (n, height, width) uint8 grey, (n, height, width, 3) uint8 RGB, or
            (n, 3, height, width) float32 RGB from 0 to 1

        Returns
        -------
        (n, D) float32 embeddings of unit length

        Raises
        ------
        ValueError, TypeError : the images have another shape or type
        TritonError : the server did not answer them
        """
        (embeddings,) = self._infer_images(contract.IMAGE_ENCODER, images)
        return embeddings

    def find_similar(self, embeddings: np.ndarray) -> Neighbors:
        """Find the nearest gallery images of `embeddings` with `vector_similarity`.

        Parameters
        ----------
        embeddings : (n, D) float, normalised by the server

        Raises
        ------
        ValueError : the embeddings have another shape
        TritonError : the server did not answer them
        """
        embeddings = np.asarray(embeddings, dtype=np.float32)
        if embeddings.ndim != 2 or not len(embeddings):
            raise ValueError(f"embeddings must have shape (n, D), got {embeddings.shape}")
        size = contract.MAX_BATCH_SIZE
        answers = [
            self._infer(contract.VECTOR_SIMILARITY, embeddings[start : start + size])
            for start in range(0, len(embeddings), size)
        ]
        ids, scores = zip(*answers, strict=True)
        return Neighbors(np.concatenate(ids), np.concatenate(scores))

    def search(self, images: Sequence | np.ndarray) -> Neighbors:
        """Embed `images` and find their nearest gallery images (see `embed`)."""
        if self.one_call:
            with contextlib.suppress(ServerNotReadyError):
                return Neighbors(*self._infer_images(contract.IMAGE_SEARCH, images))
        return self.find_similar(self.embed(images))

    def is_ready(self) -> bool:
        """Whether the server and both models can answer."""
        try:
            return all(
                self._request("GET", path).status == 200
                for path in (
                    "/v2/health/ready",
                    *(f"/v2/models/{m.name}/ready" for m in contract.MODELS),
                )
            )
        except TritonError:
            return False

    def build_ids(self) -> dict[str, str]:
        """`build_id` that each served model carries, by model name; empty where it has none."""
        build_ids = {}
        for model in contract.MODELS:
            parameters = self.model_config(model.name).get("parameters", {})
            entry = parameters.get(contract.BUILD_ID_PARAMETER, {})
            build_ids[model.name] = entry.get("string_value", "")
        return build_ids

    def model_config(self, name: str) -> dict:
        """Configuration of a served model, as Triton answers it."""
        return self._get_json(f"/v2/models/{name}/config")

    def model_metadata(self, name: str) -> dict:
        """Versions, inputs and outputs of a served model, as Triton answers them."""
        return self._get_json(f"/v2/models/{name}")

    def server_metadata(self) -> dict:
        """Name, version and extensions of the server."""
        return self._get_json("/v2")

    def _get_json(self, path: str) -> dict:
        response = self._request("GET", path)
        if response.status != 200:
            raise self._error_of(response)
        try:
            return dict(response.json())
        except (ValueError, TypeError) as error:
            raise RequestRejectedError(f"{self.url} gave an unreadable answer: {error}") from error

    def _infer_images(
        self, model: contract.ModelSpec, images: Sequence | np.ndarray
    ) -> list[np.ndarray]:
        tensors = [to_tensor(image) for image in images]
        batches = _batches_of_one_shape(tensors)
        answers = [self._infer(model, np.stack([tensors[i] for i in batch])) for batch in batches]
        order = np.argsort(np.concatenate(batches))  # back into that of the images
        return [np.concatenate(output)[order] for output in zip(*answers, strict=True)]

    def _infer(self, model: contract.ModelSpec, tensor: np.ndarray) -> list[np.ndarray]:
        (spec,) = model.inputs
        infer_input = InferInput(spec.name, tensor.shape, spec.datatype)
        infer_input.set_data_from_numpy(tensor, binary_data=True)
        body, json_size = InferenceServerClient.generate_request_body(
            [infer_input],
            outputs=[
                InferRequestedOutput(output.name, binary_data=True) for output in model.outputs
            ],
        )
        response = self._request(
            "POST",
            f"/v2/models/{model.name}/infer",
            body=body,
            headers={_HEADER_LENGTH: str(json_size)},
        )
        if response.status != 200:
            raise self._error_of(response)
        try:
            result = InferenceServerClient.parse_response_body(
                response.data, header_length=int(response.headers[_HEADER_LENGTH])
            )
            outputs = [result.as_numpy(output.name) for output in model.outputs]
        except (InferenceServerException, KeyError, ValueError) as error:
            raise RequestRejectedError(f"{self.url} gave an unreadable answer: {error}") from error
        for spec, output in zip(model.outputs, outputs, strict=True):
            if output is None or len(output) != len(tensor):
                raise RequestRejectedError(
                    f"{model.name} at {self.url} does not answer the tensor contract: {spec.name} "
                    f"is {None if output is None else output.shape} for a batch of {len(tensor)}"
                )
        return outputs

    def _request(self, method: str, path: str, **kwargs) -> urllib3.BaseHTTPResponse:
        """Send a request, and again when the connection breaks: a search changes nothing."""
        deadline = time.monotonic() + self.timeout
        for attempt in itertools.count(1):
            left = max(deadline - time.monotonic(), 0.001)
            try:
                return self._pool.request(
                    method, self.url + path, timeout=urllib3.Timeout(total=left), **kwargs
                )
            except urllib3.exceptions.HTTPError as error:
                if _is_timeout(error):
                    raise ServerTimeoutError(
                        f"Triton at {self.url} did not answer within {self.timeout:g} s. "
                        f"If it stays so, stop it and start it again with {START_COMMAND}"
                    ) from error
                # Clients that lost the same server must not all come back at once.
                pause = _FIRST_PAUSE * 2 ** (attempt - 1) * random.uniform(1, 2)
                if attempt == _ATTEMPTS or time.monotonic() + pause > deadline:
                    raise ServerUnreachableError(
                        f"Triton is not reachable at {self.url}. Start it with {START_COMMAND}"
                    ) from error
                time.sleep(pause)

    def _error_of(self, response: urllib3.BaseHTTPResponse) -> TritonError:
        try:
            reason = str(json.loads(response.data)["error"])
        except (ValueError, KeyError, TypeError):
            reason = response.data[:200].decode(errors="replace") or response.reason
        if response.status == 503 or "unknown model" in reason or "is not ready" in reason:
            return ServerNotReadyError(
                f"Triton at {self.url} does not serve the models: {reason}. "
                f"Build them with {BUILD_COMMAND} and start it again with {START_COMMAND}"
            )
        return RequestRejectedError(f"Triton at {self.url} rejected the request: {reason}")


class _TimelyResponse(http.client.HTTPResponse):
    """An answer that is whole within the socket's timeout, however slowly its bytes drip.

    The timeout of a socket holds for each read alone.
    """

    def __init__(self, sock: socket.socket, *args, **kwargs) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimelyReader(sock, self.fp.detach()))


class _TimelyReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, source: io.RawIOBase) -> None:
        self._sock, self._source = sock, source
        self._deadline = time.monotonic() + sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)
        return self._source.readinto(buffer)

    def close(self) -> None:
        self._source.close()
        super().close()


class _HTTPPool(urllib3.HTTPConnectionPool):
    class ConnectionCls(urllib3.connection.HTTPConnection):
        response_class = _TimelyResponse


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    class ConnectionCls(urllib3.connection.HTTPSConnection):
        response_class = _TimelyResponse


def _is_timeout(error: urllib3.exceptions.HTTPError) -> bool:
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # refused: a timeout by name only
        return False
    # To urllib3, a server that takes no more bytes is a broken connection.
    causes = (error, *error.args)
    return any(isinstance(c, (TimeoutError, urllib3.exceptions.TimeoutError)) for c in causes)


def to_tensor(image: Image.Image | np.ndarray) -> np.ndarray:
    """Pixels of one image as the contract wants them.

    Parameters
    ----------
    image : a Pillow image; or a (height, width[, 3]) uint8 array, grey or RGB; or a
        (3, height, width) float32 array, RGB from 0 to 1

    Returns
    -------
    (3, height, width) float32, RGB from 0 to 1, no side longer than `MAX_SIDE` for Pillow images
    """
    if isinstance(image, Image.Image):
        image = to_rgb(image)
        if max(image.size) > MAX_SIDE:
            image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BOX)
        image = np.asarray(image)
    image = np.asarray(image)
    if image.size == 0:
        raise ValueError(f"an image must have pixels, got shape {image.shape}")
    if image.dtype == np.float32:
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"a float32 image must have shape (3, height, width), got {image.shape}"
            )
        return image
    if image.dtype != np.uint8:
        raise TypeError(f"an image must be a Pillow image, uint8 or float32, got {image.dtype}")
    if image.ndim == 2:
        image = np.broadcast_to(image[..., None], (*image.shape, 3))
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"a uint8 image must have shape (height, width[, 3]), got {image.shape}")
    return (image.transpose(2, 0, 1) / np.float32(255)).astype(np.float32, copy=False)


def _batches_of_one_shape(tensors: list[np.ndarray]) -> list[list[int]]:
    """Indices of `tensors`, grouped by shape and cut to the batch size that the models take."""
    if not tensors:
        raise ValueError("there are no images to embed")
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_shape.setdefault(tensor.shape, []).append(i)
    size = contract.MAX_BATCH_SIZE
    return [
        indices[start : start + size]
        for indices in by_shape.values()
        for start in range(0, len(indices), size)
    ]
