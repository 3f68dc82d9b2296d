"""Collections that are filled in parts, named, and dropped."""

import pytest
import torch

from reverse_image_search.indexes import INDEXES, IndexOptions, VectorDatabaseError
from reverse_image_search.indexes.milvus_model import connect
from tests.milvus_server import MilvusServer

SPEC = INDEXES["milvus"]
DATABASE = SPEC.database
VECTORS, IDS = torch.eye(8), torch.arange(8) * 5


def test_a_build_goes_on_with_what_an_interrupted_one_has_filled(milvus: MilvusServer):
    SPEC.build(VECTORS[:5], IDS[:5], IndexOptions(3, name="parts"))

    index = SPEC.build(VECTORS[2:], IDS[2:], IndexOptions(3, name="parts"))

    ids, scores = index(VECTORS)
    assert ids[2:, 0].tolist() == IDS[2:].tolist()
    assert scores[2:, 0].tolist() == pytest.approx([1.0] * 6)
    assert not set(ids.flatten().tolist()) & {0, 5}  # images that have gone meanwhile


def test_an_alias_moves_to_another_collection_and_the_old_one_is_dropped(milvus: MilvusServer):
    for name in ("old", "new"):
        SPEC.build(VECTORS, IDS, IndexOptions(3, name=name))
        DATABASE.set_alias(name, "published")

    DATABASE.drop("old")

    client = connect(milvus.uri, timeout=10)
    assert client.describe_alias("published")["collection_name"] == "new"
    assert [DATABASE.has(name) for name in ("old", "new")] == [False, True]


def test_without_milvus_the_address_is_named(milvus: MilvusServer, monkeypatch, free_port):
    monkeypatch.setenv("MILVUS_URI", f"http://user:secret@127.0.0.1:{free_port()}")
    with pytest.raises(VectorDatabaseError, match=r"Milvus at http://127\.0\.0\.1:\d+ ") as error:
        DATABASE.has("any")
    assert "secret" not in str(error.value)
