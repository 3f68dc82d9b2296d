"""Triton model `vector_similarity` whose vectors are in Milvus: a build copies it as ``model.py``.

Served by Triton's Python backend (https://github.com/triton-inference-server/python_backend), which
has none of this project's modules. ``config.pbtxt`` names the collection, and MILVUS_URI in the
server's environment where it is. While Milvus is down, requests fail; they succeed again soon
after it is back.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import numpy as np

VECTOR = "embedding"  # field of a collection, beside `id`
_TIMEOUT = 4.0  # seconds; of a client's 10, a request may wait for one that times out before it
_PAUSE = 1.0  # seconds after a failure in which requests fail at once
_BATCH_SIZES = (1, 8, 64)  # that are warmed up
_NO_NEIGHBOR = -1
_LOWEST = np.finfo(np.float32).min
_TAKEN = b"used_dltensor"  # DLPack's name of a capsule whose tensor has a new owner


class TritonPythonModel:
    """One instance of the model; the name and the methods are Triton's."""

    def initialize(self, args: dict[str, str]) -> None:
        """Connect and warm up, if Milvus answers: READY is about this model, not about Milvus."""
        config = json.loads(args["model_config"])
        self._top_k = int(config["output"][0]["dims"][0])
        self._dims = int(config["input"][0]["dims"][0])
        self._collection = config["parameters"]["collection"]["string_value"]
        self._uri = os.environ.get("MILVUS_URI", "")
        self._client: Any = None
        self._failure, self._retry_at = "", 0.0
        for size in _BATCH_SIZES:
            try:
                self._search(np.ones((size, self._dims), np.float32))
            except MilvusUnavailableError as error:
                print(f"{args['model_name']}: {error}", file=sys.stderr, flush=True)
                break

    def execute(self, requests: list) -> list:
        """Answer a dynamic batch: one search for all of its requests."""
        import triton_python_backend_utils as pb_utils  # there only in Triton's processes

        # Behind the `reshape` of the configuration: (batch, 1, D).
        parts = [
            np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "INPUT__0")).reshape(
                -1, self._dims
            )
            for request in requests
        ]
        try:
            outputs = self._search(np.concatenate(parts))
        except MilvusUnavailableError as error:
            # One for each: Triton 2.51 dies of one that responses share.
            failures = [pb_utils.TritonError(str(error)) for _ in requests]
            return [pb_utils.InferenceResponse(error=failure) for failure in failures]
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return [
            pb_utils.InferenceResponse([_tensor("OUTPUT__0", ids), _tensor("OUTPUT__1", scores)])
            for ids, scores in zip(*(np.split(output, ends) for output in outputs), strict=True)
        ]

    def finalize(self) -> None:
        """Close the connection."""
        self._disconnect()

    def _search(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if time.monotonic() < self._retry_at:  # else waiting requests would time out one by one
            raise MilvusUnavailableError(self._failure)
        deadline = time.monotonic() + _TIMEOUT
        try:
            if not self._client:
                self._client = connect(self._uri, _TIMEOUT)
                self._client.load_collection(self._collection, timeout=_until(deadline))
            return search(self._client, self._collection, queries, self._top_k, _until(deadline))
        except Exception as error:
            # gRPC itself would wait up to two minutes before it tries to connect again.
            self._disconnect()
            self._failure = f"Milvus at {address(self._uri)}: {reason(error)}"
            self._retry_at = time.monotonic() + _PAUSE
            raise MilvusUnavailableError(self._failure) from error

    def _disconnect(self) -> None:
        if self._client:
            disconnect(self._client, self._uri)
        self._client = None


def _tensor(name: str, array: np.ndarray) -> Any:
    """Triton's tensor of a contiguous array.

    With NumPy 2, Triton 2.51 makes an empty one of pb_utils.Tensor(name, array). It names a DLPack
    capsule that it has taken otherwise than NumPy expects, which would complain in the log.
    """
    import triton_python_backend_utils as pb_utils

    capsule = array.__dlpack__()
    tensor = pb_utils.Tensor.from_dlpack(name, capsule)
    ctypes.pythonapi.PyCapsule_SetName(ctypes.py_object(capsule), _TAKEN)
    return tensor


class MilvusUnavailableError(Exception):
    """Milvus did not answer, or not with neighbors; the message says why."""


def connect(uri: str, timeout: float) -> Any:
    """A connected MilvusClient of its own; `uri` is a file, or the address of a server."""
    if not uri:
        raise ValueError("MILVUS_URI is not set")
    # When it is imported, pymilvus reads an .env file, and MILVUS_URI, and refuses a file there.
    os.environ.setdefault("PYTHON_DOTENV_DISABLED", "1")
    setting = os.environ.pop("MILVUS_URI", None)
    try:
        from pymilvus import MilvusClient  # of requirements-milvus.txt
    finally:
        if setting is not None:
            os.environ["MILVUS_URI"] = setting
    # Their tracebacks would fill the log; what failed stands in our own messages.
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MilvusClient(uri, timeout=timeout, dedicated=True)


def disconnect(client: Any, uri: str) -> None:
    """Close a connection; a file can then be opened by another process."""
    client.close()
    if is_file(uri):
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(uri)


def _until(deadline: float) -> float:
    """Seconds until `deadline`, a few at least: none would mean no limit."""
    return max(0.1, deadline - time.monotonic())


def is_file(uri: str) -> bool:
    """Whether `uri` is a file of Milvus Lite, which one process at a time can open."""
    return uri.endswith(".db")


def search(
    client: Any,
    collection: str,
    queries: np.ndarray,
    top_k: int,
    timeout: float,
    **options: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest vectors of `queries` (batch, D) of any length; non-finite values count as 0.

    Returns
    -------
    ids (batch, K) int64 and cosine similarities (batch, K) float32, descending, ties by ascending
    id; padded with -1 and the lowest float32 if the collection has fewer than K
    """
    answer = client.search(
        collection,
        data=list(unit_length(queries)),
        anns_field=VECTOR,
        limit=top_k,
        search_params={"metric_type": "COSINE", "params": {"ef": max(200, 2 * top_k)}},
        output_fields=["id"],
        timeout=timeout,
        **options,
    )
    ids = np.full((len(queries), top_k), _NO_NEIGHBOR, np.int64)
    scores = np.full((len(queries), top_k), _LOWEST, np.float32)
    for row, hits in enumerate(answer):
        found_ids = np.array([hit["id"] for hit in hits], np.int64)
        found = np.array([hit["distance"] for hit in hits], np.float32)
        order = np.lexsort((found_ids, -found))
        ids[row, : len(order)], scores[row, : len(order)] = found_ids[order], found[order]
    return ids, scores


def unit_length(embeddings: np.ndarray) -> np.ndarray:
    """Scale each row to length 1, as `exact.unit_length` does."""
    finite = np.nan_to_num(embeddings.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    lengths = np.linalg.norm(finite, axis=1, keepdims=True)
    return (finite / np.maximum(lengths, 1e-60)).astype(np.float32)


def address(uri: str) -> str:
    """`uri` without a password."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else uri


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if hasattr(error, "details"):  # an error of gRPC
        text = error.details()
    else:
        text = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())[:300]
