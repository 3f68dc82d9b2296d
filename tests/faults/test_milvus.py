"""Milvus frozen, or down during an update: clear errors in time, and no wrong answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reverse_image_search import build_models
from reverse_image_search.client import Client, RequestRejectedError
from reverse_image_search.client.search import search_gallery
from reverse_image_search.gallery import Gallery
from reverse_image_search.indexes import INDEXES, VectorDatabaseError
from reverse_image_search.layout import gallery_file
from tests.faults.conftest import photo, ready_again
from tests.milvus_server import MilvusServer
from tests.running import Triton, wait_until

TIMEOUT = 10  # seconds; the client's default


def first_found(server: Triton, path: Path) -> Path:
    """The gallery's file that is most similar to a file."""
    gallery = Gallery(gallery_file(server.output_dir))
    client = Client(server.url, timeout=TIMEOUT)
    return gallery.paths(search_gallery(client, gallery, Image.open(path)).ids[0])[0]


def test_milvus_is_frozen(
    photos: Path, milvus: MilvusServer, start_triton, tmp_path, tally, figure
):
    """Triton stays as it is: requests fail in time, and succeed again once Milvus goes on.

    Killed, it is in test_replicas.py.
    """
    row = tally("Milvus frozen")
    server = start_triton(tmp_path)
    client = Client(server.url, timeout=TIMEOUT)
    pid, queries = server.server_pid, client.embed([Image.open(photos / "3.png")])
    expected = client.find_similar(queries)

    def fail_in_time(_thread: int) -> None:
        start = time.monotonic()
        with pytest.raises(RequestRejectedError, match=f"Milvus at {milvus.uri}"):
            client.find_similar(queries)
        assert time.monotonic() - start < TIMEOUT

    def seconds_until_right() -> float:
        start = time.monotonic()
        while True:
            try:
                answer = client.find_similar(queries)
            except RequestRejectedError:
                assert time.monotonic() - start < ready_again()
                time.sleep(0.1)
            else:
                np.testing.assert_array_equal(answer.ids, expected.ids)
                return time.monotonic() - start

    with row.case("frozen"):
        milvus.freeze()
        try:
            with ThreadPoolExecutor(8) as threads:  # batched
                list(threads.map(fail_in_time, range(24)))
        finally:
            milvus.thaw()
        figure(f"Milvus back after being frozen: right after {seconds_until_right():.1f} s")
    assert server.server_pid == pid
    assert "Traceback" not in server.log


def test_an_update_that_milvus_missed_is_finished_by_the_next(
    photos: Path, start_triton, tmp_path, monkeypatch, capsys, tally
):
    """The gallery has it, the index does not: nothing wrong is found meanwhile."""
    row = tally("Milvus down after an update was published")
    server = start_triton(tmp_path)
    new, build = photo(100, photos), ["--images", str(photos), "--output-dir", str(tmp_path)]
    (photos / "5.png").unlink()

    def fail(*_arguments: object) -> None:
        raise VectorDatabaseError("Milvus has just gone")

    spec = INDEXES["milvus"]
    assert spec.database
    with row.case("down"), monkeypatch.context() as patch:
        patch.setitem(
            INDEXES, "milvus", replace(spec, database=replace(spec.database, update=fail))
        )
        assert build_models.main(build) == 1
        assert "its index lacks the last changes" in capsys.readouterr().err
        assert first_found(server, new) != new
        assert first_found(server, photos / "3.png") == photos / "3.png"
    with row.case("the next one"):
        assert build_models.main(build) == 0
        wait_until(lambda: first_found(server, new) == new, "the new photo is found", 10)
        found = Client(server.url).search([Image.open(new)]).ids[0]
        assert sorted(found[found >= 0]) == sorted(Gallery(gallery_file(tmp_path)).ids())
