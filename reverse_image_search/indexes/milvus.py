"""Vectors in Milvus (https://milvus.io): a file, a server or a cluster, at MILVUS_URI.

One collection holds the vectors of one gallery and encoder, and is named in the configuration of
the model that searches it, `milvus_model`. So a new build is served at once and as a whole, while
images that are added or removed change the collection in place.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from reverse_image_search import contract
from reverse_image_search.indexes import milvus_model
from reverse_image_search.indexes.exact import unit_length
from reverse_image_search.indexes.milvus_model import VECTOR, search
from reverse_image_search.indexes.spec import (
    IndexOptions,
    IndexSpec,
    VectorDatabase,
    VectorDatabaseError,
)

_TIMEOUT = 120.0  # seconds that one step of a build may take
_CONNECT_TIMEOUT = 10.0
_ROWS_AT_ONCE = 1000
_CHECKED = 64  # vectors that must find themselves
# HNSW (Malkov and Yashunin 2018) with 2 * 16 neighbors in its lowest layer.
_HNSW = {"M": 16, "efConstruction": 200}


class MilvusIndex(nn.Module):
    """The `top_k` vectors of a collection that are most similar to each query, but for a few."""

    def __init__(self, collection: str, top_k: int):
        super().__init__()
        self.collection, self.top_k = collection, top_k

    def forward(self, query_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """As `ExactIndex.forward`, but for neighbors that an approximate search misses."""
        with _connection() as client:
            client.load_collection(self.collection, timeout=_TIMEOUT)
            ids, scores = _search(client, self.collection, query_embeddings, self.top_k)
        return torch.from_numpy(ids), torch.from_numpy(scores)


def build_collection(embeddings: Tensor, ids: Tensor, options: IndexOptions) -> MilvusIndex:
    """Fill the collection `options.name`; goes on with what an interrupted build has filled."""
    name = options.name
    with _connection() as client:
        if client.has_collection(name) and not client.list_indexes(name):
            client.drop_collection(name)
        if not client.has_collection(name):
            _create_collection(client, name, embeddings.shape[1])
        client.load_collection(name, timeout=_TIMEOUT)
        there = _ids(client, name)
        _remove(client, name, np.setdiff1d(there, ids.numpy()))
        is_missing = torch.from_numpy(~np.isin(ids.numpy(), there))
        _upsert(client, name, ids[is_missing], embeddings[is_missing])
        client.flush(name, timeout=_TIMEOUT)
        if (count := _count(client, name)) != len(ids):
            raise VectorDatabaseError(f"Milvus has {count} of {len(ids)} vectors in {name}")
        examples = embeddings[:_CHECKED]
        _, scores = _search(client, name, examples, options.top_k)
        if (scores[:, 0] < 0.999).any():
            raise VectorDatabaseError(f"vectors in {name} do not find themselves in Milvus")
    return MilvusIndex(name, options.top_k)


def has_collection(name: str) -> bool:
    """Whether a collection is there."""
    with _connection() as client:
        return client.has_collection(name)


def update_collection(name: str, ids: Tensor, embeddings: Tensor, removed: Tensor) -> None:
    """Change a collection in place, see `VectorDatabase.update`."""
    with _connection() as client:
        client.load_collection(name, timeout=_TIMEOUT)
        _upsert(client, name, ids, embeddings)
        _remove(client, name, removed.numpy())
        _count(client, name)  # answered once the nodes that search have come as far


def set_alias(name: str, alias: str) -> None:
    """Have `alias` stand for the collection `name`."""
    with _connection() as client:
        others = [other for other in client.list_collections() if other != name]
        is_used = any(alias in client.list_aliases(other)["aliases"] for other in others)
        if is_used:
            client.alter_alias(name, alias)
        elif alias not in client.list_aliases(name)["aliases"]:
            client.create_alias(name, alias)


def drop_collection(name: str) -> None:
    """Delete a collection, if it is there."""
    with _connection() as client:
        if client.has_collection(name):
            for alias in client.list_aliases(name)["aliases"]:
                client.drop_alias(alias)
            client.drop_collection(name)


@contextmanager
def _connection() -> Iterator[Any]:
    """A connected client; what it raises becomes a VectorDatabaseError."""
    uri = os.environ.get("MILVUS_URI", "")
    client = None
    try:
        client = milvus_model.connect(uri, _CONNECT_TIMEOUT)
        yield client
    except VectorDatabaseError:
        raise
    except Exception as error:
        reason = milvus_model.reason(error)
        if client is None and milvus_model.is_file(uri):
            reason = (
                f"{reason}. One process at a time can open it: stop the server that serves it, or "
                "name the address of a Milvus server instead (doc/milvus.md)"
            )
        raise VectorDatabaseError(
            f"Milvus at {milvus_model.address(uri)} (MILVUS_URI): {reason}"
        ) from error
    finally:
        if client:
            milvus_model.disconnect(client, uri)


def _create_collection(client: Any, name: str, dims: int) -> None:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dims)
    index = client.prepare_index_params()
    index.add_index(VECTOR, index_type="HNSW", metric_type="COSINE", params=_HNSW)
    client.create_collection(name, schema=schema, index_params=index, timeout=_TIMEOUT)


def _search(client: Any, name: str, queries: Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    return search(client, name, queries.numpy(), top_k, _TIMEOUT, consistency_level="Strong")


def _ids(client: Any, name: str) -> np.ndarray:
    """All ids in a collection: (N,) int64."""
    pages = client.query_iterator(
        name,
        batch_size=10_000,
        filter="id >= 0",
        output_fields=["id"],
        consistency_level="Strong",
        timeout=_TIMEOUT,
    )
    ids: list[int] = []
    while page := pages.next():
        ids += (row["id"] for row in page)
    return np.array(ids, np.int64)


def _count(client: Any, name: str) -> int:
    (row,) = client.query(
        name,
        filter="",
        output_fields=["count(*)"],
        consistency_level="Strong",
        timeout=_TIMEOUT,
    )
    return row["count(*)"]


def _upsert(client: Any, name: str, ids: Tensor, embeddings: Tensor) -> None:
    parts = zip(ids.split(_ROWS_AT_ONCE), embeddings.split(_ROWS_AT_ONCE), strict=True)
    with tqdm(total=len(ids), desc="milvus", unit=" vectors", disable=None) as progress:
        for some_ids, some in parts:
            vectors = unit_length(some).numpy()
            rows = [
                {"id": id_, VECTOR: vector}
                for id_, vector in zip(some_ids.tolist(), vectors, strict=True)
            ]
            if rows:
                client.upsert(name, rows, timeout=_TIMEOUT)
            progress.update(len(rows))


def _remove(client: Any, name: str, ids: np.ndarray) -> None:
    for some in np.split(ids, range(_ROWS_AT_ONCE, len(ids), _ROWS_AT_ONCE)):
        if len(some):
            client.delete(name, ids=some.tolist(), timeout=_TIMEOUT)


def _model_files(_index: nn.Module) -> dict[str, nn.Module | bytes]:
    # A file of that name keeps Python from writing bytecode, which is not part of the build. Triton
    # lets no variable of the environment do so.
    return {"model.py": Path(milvus_model.__file__).read_bytes(), "__pycache__": b""}


MILVUS = IndexSpec(
    build=build_collection,
    files=_model_files,
    backend=contract.PYTHON_BACKEND,
    warms_up_itself=True,
    is_exact=False,
    requirements="requirements-milvus.txt",
    database=VectorDatabase(has_collection, update_collection, set_alias, drop_collection),
)
