"""Client of the served models, on https://github.com/triton-inference-server/client."""

from __future__ import annotations

import secrets
import time
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from geventhttpclient.response import HTTPConnectionClosed
from PIL import Image
from tritonclient.http import InferInput
from tritonclient.utils import InferenceServerException

from reverse_image_search import contract
from reverse_image_search.client import connections
from reverse_image_search.client.errors import RequestRejectedError, TritonError, triton_error
from reverse_image_search.client.tensors import batches_of_one_shape, to_tensors

_BAD_GATEWAY = "502"  # what a balancer answers when the server behind it ends without an answer
# A new connection that was accepted, then closed without an answer.
_BROKEN = ConnectionResetError, BrokenPipeError, HTTPConnectionClosed
# Seconds before a request is sent again: a replica that is being killed goes on accepting
# connections for some milliseconds, and has the fewest requests, so a balancer prefers it.
_PAUSES = 0.1, 0.5


class Neighbors(NamedTuple):
    """The nearest gallery images of n queries, best first."""

    ids: np.ndarray  # (n, K) int64
    scores: np.ndarray  # (n, K) float32, cosine similarity, falling


class Client:
    """A running Triton server. Threads and forked processes may share one client.

    Parameters
    ----------
    url : address of Triton's HTTP endpoint
    timeout : seconds that the server may be silent
    one_call : search through the ensemble `image_search`, if the server has it
    """

    def __init__(
        self, url: str = "http://localhost:8000", timeout: float = 10.0, one_call: bool = False
    ) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise ValueError(f"the address must start with http:// or https://, got {url}")
        self.timeout = timeout
        self.one_call = one_call
        self._ensemble_is_served: bool | None = None  # unknown before the first search

    def embed(self, images: Image.Image | np.ndarray | Iterable, version: str = "") -> np.ndarray:
        """Embed images with `image_encoder`: (n, D) float32 of unit length.

        Parameters
        ----------
        images : a list of Pillow images or of (height, width[, 3]) uint8 arrays, of any sizes;
            one such image; or one array: (n, height, width) uint8 grayscale,
            (n, height, width, 3) uint8 RGB, or ([n, ]3, height, width) float32 RGB from 0 to 1
        version : of `image_encoder`, instead of the newest one

        Raises
        ------
        ValueError, TypeError : the images have another shape, range or type
        TritonError : the server did not answer, or does not serve `version`
        """
        (embeddings,) = self._infer(contract.IMAGE_ENCODER, to_tensors(images), version)
        return embeddings

    def find_similar(self, embeddings: np.ndarray, version: str = "") -> Neighbors:
        """Find the nearest gallery images of finite `embeddings` (n, D); raises like `embed`.

        `version` is that of `vector_similarity`, instead of the newest one.
        """
        embeddings = np.asarray(embeddings, dtype=np.float32)
        if embeddings.ndim != 2 or not len(embeddings):
            raise ValueError(f"embeddings must have shape (n, D), got {embeddings.shape}")
        if not np.isfinite(embeddings).all():
            raise ValueError("embeddings must be finite, got NaN or infinite values")
        return Neighbors(*self._infer(contract.VECTOR_SIMILARITY, list(embeddings), version))

    def search(self, images: Image.Image | np.ndarray | Iterable) -> Neighbors:
        """Embed `images` and find their nearest gallery images (see `embed`)."""
        if self.one_call and self._serves_ensemble():
            return Neighbors(*self._infer(contract.IMAGE_SEARCH, to_tensors(images)))
        return self.find_similar(self.embed(images))

    def is_ready(self) -> bool:
        """Whether the server and both models can answer."""
        try:
            return self._call("is_server_ready") and all(
                self._call("is_model_ready", model.name) for model in contract.MODELS
            )
        except TritonError:
            return False

    def model_config(self, name: str) -> dict[str, Any]:
        """Configuration of a served model."""
        return self._get("get_model_config", name)

    def model_metadata(self, name: str) -> dict[str, Any]:
        """Versions, inputs and outputs of a served model."""
        return self._get("get_model_metadata", name)

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return self._get("get_server_metadata")

    def _get(self, method: str, *model_name: str) -> dict[str, Any]:
        answer = self._call(method, *model_name)
        if not isinstance(answer, dict) or (model_name and answer.get("name") != model_name[0]):
            raise RequestRejectedError(f"{self.url} sent an unreadable answer: {answer!r:.200}")
        return answer

    def _serves_ensemble(self) -> bool:
        if self._ensemble_is_served is None:
            self._ensemble_is_served = self._call("is_model_ready", contract.IMAGE_SEARCH.name)
            if not self._ensemble_is_served:
                warnings.warn(
                    f"{self.url} does not serve {contract.IMAGE_SEARCH.name}: searching with two "
                    "calls. To search with one, start the server with --ensemble",
                    stacklevel=3,
                )
        return self._ensemble_is_served

    def _infer(
        self, model: contract.ModelSpec, items: list[np.ndarray], version: str = ""
    ) -> list[np.ndarray]:
        """Outputs of `model` for `items`, which are sent in batches of one shape."""
        if len(items) == 1:
            outputs = self._infer_batch(model, items[0][np.newaxis], version)
            return [output.copy() for output in outputs]
        batches = batches_of_one_shape(items)
        answers = [
            self._infer_batch(model, np.stack([items[i] for i in batch]), version)
            for batch in batches
        ]
        order = np.argsort(np.concatenate(batches))  # back to that of the items
        try:
            return [np.concatenate(parts)[order] for parts in zip(*answers, strict=True)]
        except ValueError as error:
            raise RequestRejectedError(
                f"{self.url} changed its models between two batches ({error}). Search again"
            ) from error

    def _infer_batch(
        self, model: contract.ModelSpec, batch: np.ndarray, version: str
    ) -> list[np.ndarray]:
        (spec,) = model.inputs
        infer_input = InferInput(spec.name, batch.shape, spec.datatype)
        infer_input.set_data_from_numpy(batch)
        request_id = secrets.token_hex()
        result = self._call("infer", model.name, [infer_input], version, request_id=request_id)
        try:
            answer = result.get_response()
            outputs = [result.as_numpy(spec.name) for spec in model.outputs]
        except Exception as error:  # whatever a malformed answer leads to
            raise triton_error(error, self.url, self.timeout) from error
        if (answer.get("id"), answer.get("model_name")) != (request_id, model.name):
            connections.drop(self.url, self.timeout)
            raise RequestRejectedError(
                f"{self.url} sent the answer to another request. Search again"
            )
        for spec, output in zip(model.outputs, outputs, strict=True):
            shape = None if output is None else output.shape
            if shape is None or len(shape) != 2 or shape[0] != len(batch):
                raise RequestRejectedError(
                    f"{model.name} at {self.url} does not answer the tensor contract: {spec.name} "
                    f"is {shape} for a batch of {len(batch)}"
                )
        return outputs

    def _call(self, method: str, *arguments, **options) -> Any:
        """Call a method of this thread's `InferenceServerClient`.

        A kept connection that turns out broken, as after a restart of the server, is replaced
        once. Whoever dies with the request, the server or a replica behind a balancer, is asked
        again up to twice: searching changes nothing on the server.
        """
        pauses = iter(_PAUSES)
        while True:
            kept = connections.of_this_thread().get((self.url, self.timeout))
            try:
                connection = kept or connections.add(self.url, self.timeout)
                return getattr(connection, method)(*arguments, **options)
            except InferenceServerException as error:
                pause = next(pauses, None) if error.status() == _BAD_GATEWAY else None
                if pause is None:
                    raise triton_error(error, self.url, self.timeout) from error
            except BaseException as error:
                # What is left of an interrupted answer must not be read as the next one.
                connections.drop(self.url, self.timeout)
                if not isinstance(error, Exception):
                    raise
                pause = None
                if kept and not isinstance(error, TimeoutError):
                    pause = 0.0
                elif isinstance(error, _BROKEN):
                    pause = next(pauses, None)
                if pause is None:
                    raise triton_error(error, self.url, self.timeout) from error
            time.sleep(pause)
