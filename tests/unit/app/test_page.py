"""The page's logic, with Streamlit's AppTest and a stand-in for the server.

What needs a real server and a real browser is in tests/browser.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil

import numpy as np
import pytest
import streamlit as st
from PIL import Image
from streamlit.testing.v1 import AppTest

from reverse_image_search.app import served
from reverse_image_search.client import (
    Neighbors,
    RequestRejectedError,
    ServerNotReadyError,
    ServerTimeoutError,
    ServerUnreachableError,
)
from reverse_image_search.gallery import (
    Gallery,
    GalleryImage,
    GalleryMetadata,
    make_thumbnail,
    pixel_digest,
)
from reverse_image_search.gallery_writer import write_gallery
from reverse_image_search.layout import gallery_file
from tests.image_corpus import encoded, quadrants
from tests.running import REPO_ROOT

APP = str(REPO_ROOT / "reverse_image_search" / "app" / "page.py")
GALLERY_SIZE, QUERIES, TOP_K = 60, 47, 30
START_COMMAND = "reverse_image_search/bin/start_inference_server_cpu.sh"
BUILD_COMMAND = "reverse_image_search/bin/build_models.sh"


class StubClient:
    """Searches by the pixels themselves; the attributes say what it serves and how it fails."""

    gallery: Gallery
    gallery_id = "gallery1"
    encoder_id = "encoder1"
    failure: Exception | None = None
    top_k = TOP_K

    def __init__(self, url, timeout):
        self.url = url

    def model_config(self, name):
        self._fail()
        ids = {"encoder_id": self.encoder_id}
        if name == "vector_similarity":
            ids["gallery_id"] = self.gallery_id
        return {"parameters": {key: {"string_value": value} for key, value in ids.items()}}

    def embed(self, images, version=""):
        self._fail()
        return np.stack([_direction(image) for image in images])

    def find_similar(self, embeddings, version=""):
        self._fail()
        return _nearest(self.gallery, embeddings[0], self.top_k)

    def server_metadata(self):
        return {"name": "triton", "version": "2.99.0"}

    def model_metadata(self, name):
        tensor = {"name": "INPUT__0", "datatype": "FP32", "shape": [-1, 64]}
        return {"name": name, "versions": ["7"], "inputs": [tensor], "outputs": []}

    def _fail(self):
        if self.failure:
            raise self.failure


def _direction(image):
    """Unit vector of 8 x 8 pixels, evenly spread over an image of any size."""
    gray = image.mean(axis=2) if image.ndim == 3 else image
    rows, columns = (np.arange(8) * size // 8 for size in gray.shape)
    vector = gray[np.ix_(rows, columns)].ravel() + 1e-3
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def _nearest(gallery, vector, top_k):
    """Ids and scores (1, top_k), padded with -1 as the served model does."""
    ids = gallery.ids()
    scores = np.stack([_direction(image.pixels) for image in gallery.images(ids)]) @ vector
    order = np.argsort(-scores, kind="stable")[:top_k]
    missing = max(0, top_k - len(ids))
    found_ids = np.pad(ids[order], (0, missing), constant_values=-1)
    found_scores = np.pad(scores[order], (0, missing), constant_values=np.finfo(np.float32).min)
    return Neighbors(found_ids[None], found_scores[None])


def _image(number, pixels, label):
    height, width = pixels.shape[:2]
    file = make_thumbnail(pixels)
    return GalleryImage(
        number, f"blobs/{number}.png", label, width, height, pixel_digest(pixels), file
    )


def _write_gallery(
    output_dir,
    gallery_id="gallery1",
    seed=0,
    labels=("Blob", "Dot", "Line_*_"),
    shape=(8, 8),
    sizes=(GALLERY_SIZE, QUERIES),
    **metadata,
):
    """A gallery of random images."""
    random = np.random.default_rng(seed)
    images, queries = (
        [
            _image(
                number,
                random.integers(0, 256, shape, np.uint8),
                random.choice(labels) if labels else None,
            )
            for number in range(size)
        ]
        for size in sizes
    )
    values = {
        "gallery_id": gallery_id,
        "encoder_id": "encoder1",
        "dataset": "Blobs <b>&</b> [dots](http://x)",
        "class_names": list(labels),
        "encoder_height": 8,
        "encoder_width": 8,
        "encoder_is_grayscale": True,
        "shows_objects_on_black": True,
    }
    path = gallery_file(output_dir)
    write_gallery(path, GalleryMetadata(**values | metadata), images, queries)
    return Gallery(path)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """``serve(gallery)``: a server of that gallery behind the page."""
    st.cache_resource.clear()
    st.cache_data.clear()
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_URL", "http://triton.test:8000")

    def patch(gallery):
        stub = type("Stub", (StubClient,), {"gallery": gallery})
        monkeypatch.setattr(served, "Client", stub)
        return gallery

    return patch


@pytest.fixture
def gallery(tmp_path, serve):
    """A gallery of random images on disk, and a server of it behind the page."""
    return serve(_write_gallery(tmp_path))


@pytest.fixture
def server(gallery):
    """The stand-in that the page meets: set `failure`, `gallery` or its ids."""
    return served.Client


def _open(**address):
    page = AppTest.from_file(APP, default_timeout=30)
    for key, value in address.items():
        page.query_params[key] = value
    return page.run()


def _run_later(page):
    """Run the page again, after what it remembers of the server for a second has grown stale."""
    st.cache_data.clear()
    return page.run()


def _tiles(page, key="result"):
    """Tiles of a grid of the page; none when it is not there."""
    for element in page.get("bidi_component"):
        data = json.loads(element.proto.json or "{}")
        if data.get("testId") == key:
            return data["tiles"]
    return []


def _problems(page):
    """Messages of the page, as they read once Markdown is rendered."""
    assert not page.exception
    return [error.value.replace("\\", "").replace("`", "") for error in page.error]


def _card(page):
    (card,) = [element.proto.body for element in page.get("html") if "card" in element.proto.body]
    return card


def _query(gallery, number):
    return gallery.queries([number])[0].pixels


def _shown(page, caption):
    """The image of the query card under `caption`."""
    figures = re.findall(r'src="data:image/\w+;base64,([^"]+)" alt="([^"]*)"', _card(page))
    (data,) = [data for data, alt in figures if alt.startswith(caption)]
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_first_page_shows_the_neighbors_of_the_first_test_image(gallery):
    page = _open()

    expected = _nearest(gallery, _direction(_query(gallery, 0)), 20)
    tiles = _tiles(page)
    assert page.subheader[0].value == "Top 20 similar images out of 60"
    assert [tile["value"] for tile in tiles] == [f"gallery-{i}" for i in expected.ids[0]]
    for tile, gallery_id, score in zip(tiles, expected.ids[0], expected.scores[0], strict=True):
        label = gallery.images([gallery_id])[0].label
        assert [line["text"] for line in tile["lines"]] == [f"{score:.4f}", label]
    assert [tile["picked"] for tile in _tiles(page, "query")] == [True] + 19 * [False]
    assert not page.error


def test_majority_is_counted_among_the_results_shown(gallery):
    page = _open(k="5")

    ids = _nearest(gallery, _direction(_query(gallery, 0)), 5).ids[0]
    labels = [image.label for image in gallery.images(ids)]
    name = max(labels, key=labels.count)
    assert f"<b>{labels.count(name)} of 5</b>" in _card(page)


def test_link_shows_the_same_page(gallery):
    page = _open(query="gallery-7", k="5", gallery="gallery1")

    tiles = _tiles(page)
    assert page.subheader[0].value == "Top 5 similar images out of 60"
    assert tiles[0]["value"] == "gallery-7"
    assert [tile["badge"] for tile in tiles] == ["same image", "", "", "", ""]
    assert not page.warning


def test_link_of_another_gallery_is_warned_about(gallery):
    page = _open(query="gallery-7", gallery="gallery0")

    assert "gallery0" in page.warning[0].value
    assert _tiles(page)


@pytest.mark.parametrize(
    "query", ["test-47", "gallery-60", "gallery--1", "gallery-1e3", "x", "", "test-9999999999999"]
)
def test_query_that_does_not_exist(gallery, query):
    page = _open(query=query)

    assert _problems(page) == [
        "The address names an image that this gallery does not have. Pick another one."
    ]
    assert not _tiles(page)
    assert _tiles(page, "query")


@pytest.mark.parametrize("k", ["0", "-3", "31", "many", ""])
def test_impossible_number_of_results_in_the_address(gallery, k):
    page = _open(k=k)

    assert page.slider(key="k").max == TOP_K
    assert len(_tiles(page)) == 20
    assert not _problems(page)


def test_number_of_results_follows_the_slider(gallery):
    page = _open()
    page.slider(key="k").set_value(TOP_K).run()

    assert len(_tiles(page)) == TOP_K


def test_server_that_returns_one_neighbor(gallery, server):
    server.top_k = 1

    page = _open()

    assert page.subheader[0].value == "Top 1 similar images out of 60"
    assert not page.slider


def test_ids_and_sources_on_demand(gallery):
    page = _open(query="gallery-7")
    assert "train #7" not in str(_tiles(page))
    page.toggle(key="details").set_value(True).run()

    assert _tiles(page)[0]["lines"][2]["text"] == "id 7 · blobs/7.png"


def test_pages_hold_every_test_image_once(gallery):
    seen = []
    for number in ("1", "2", "3"):
        seen += [tile["value"] for tile in _tiles(_open(page=number, shuffle="5"), "query")]

    assert sorted(seen) == sorted(f"test-{i}" for i in range(QUERIES))
    assert seen != [f"test-{i}" for i in range(QUERIES)]


def test_pages_turn(gallery):
    page = _open()
    assert page.button[1].disabled  # previous
    page.button[2].click().run()
    assert _tiles(page, "query")[0]["value"] == "test-20"
    page.button[2].click().run()
    assert page.button[2].disabled  # next
    assert len(_tiles(page, "query")) == QUERIES - 40


def test_class_filter(gallery):
    page = _open(page="2")
    page.selectbox(key="class").set_value("Dot").run()

    dots = gallery.query_ids("Dot")
    assert [tile["value"] for tile in _tiles(page, "query")] == [f"test-{i}" for i in dots[:20]]
    assert page.query_params["page"] == "1"


def test_shuffle_shows_other_images(gallery):
    page = _open()
    page.button[0].click().run()

    values = [tile["value"] for tile in _tiles(page, "query")]
    assert values != [f"test-{i}" for i in range(20)]
    assert "shuffle" in page.query_params
    assert page.query_params["page"] == "1"


@pytest.mark.parametrize(
    "failure",
    [
        ServerUnreachableError(f"Triton is not reachable. Start it with {START_COMMAND}"),
        ServerNotReadyError(f"Triton at http://x does not serve the models. {START_COMMAND}"),
        ServerTimeoutError("Triton at http://x did not answer within 5 s."),
        RequestRejectedError("rejected: <script>alert(1)</script> [a](b) $x$ :red[c] _d_"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_failing_server_is_told_in_its_own_words(gallery, server, failure):
    server.failure = failure

    page = _open()

    assert _problems(page) == [str(failure)]
    assert not _tiles(page)
    assert _tiles(page, "query")  # one can go on picking


def test_markup_in_messages_is_shown_letter_by_letter(gallery, server):
    server.failure = RequestRejectedError(f"<b> [a](b) $x$ :red[c] _d_, start {START_COMMAND}")

    shown = _open().error[0].value

    assert shown == (rf"\<b\> \[a\]\(b\) \$x\$ \:red\[c\] \_d\_, start `{START_COMMAND}`")


def test_page_recovers_when_the_server_is_back(gallery, server):
    server.failure = ServerUnreachableError("gone")
    page = _open(query="gallery-7")
    assert not _tiles(page)

    server.failure = None
    _run_later(page)

    assert _tiles(page)[0]["value"] == "gallery-7"
    assert not page.error


@pytest.mark.parametrize("failure", [ServerUnreachableError, RequestRejectedError])
def test_a_failure_that_only_the_search_met_is_remembered(gallery, server, monkeypatch, failure):
    """A server that is started again at once: the watch compares with what the page shows."""
    page = _open()
    healthy = page.session_state.seen
    look = server("", 1).model_config
    monkeypatch.setattr(server, "model_config", lambda self, name: look(name))  # it seems well

    server.failure = failure("gone")
    page.run()
    assert _problems(page)
    assert failure.__name__ in page.session_state.seen

    server.failure = None
    page.run()
    assert _tiles(page)
    assert page.session_state.seen == healthy


@pytest.mark.parametrize("parameter", ["gallery_id", "encoder_id"])
@pytest.mark.parametrize("served", ["other", ""])
def test_no_results_from_models_of_another_build(gallery, server, parameter, served):
    setattr(server, parameter, served)

    page = _open()

    (problem,) = _problems(page)
    assert START_COMMAND in problem
    assert not _tiles(page)


def test_server_restarted_with_another_build(gallery, server):
    page = _open()
    assert _tiles(page)

    server.gallery_id = "gallery2"
    _run_later(page)

    assert not _tiles(page)
    assert "gallery2" in _problems(page)[0]


def test_gallery_replaced_on_disk(gallery, server, tmp_path):
    """First the gallery alone, as between a build and the server's restart; then the server too."""
    page = _open(query="gallery-7")
    shutil.move(tmp_path / "gallery", tmp_path / "old")
    newer = _write_gallery(tmp_path, "gallery2", seed=1)
    _run_later(page)
    assert not _tiles(page)
    (problem,) = _problems(page)
    assert "gallery2" in problem
    assert "gallery1" in problem

    server.gallery_id, server.gallery = "gallery2", newer
    _run_later(page)

    expected = _nearest(newer, _direction(newer.images([7])[0].pixels), 20).ids[0]
    assert [tile["value"] for tile in _tiles(page)] == [f"gallery-{i}" for i in expected]


def test_missing_gallery(gallery, tmp_path):
    shutil.rmtree(tmp_path / "gallery")

    page = _open()

    assert _problems(page) == [
        f"There is no gallery at {gallery_file(tmp_path)}. Build it with {BUILD_COMMAND}"
    ]
    assert not _tiles(page)
    assert not _tiles(page, "query")


@pytest.mark.parametrize("kept", [0, 0.5])
def test_damaged_gallery(gallery, tmp_path, kept):
    path = gallery_file(tmp_path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])

    (problem,) = _problems(_open())

    assert str(path) in problem
    assert BUILD_COMMAND in problem


def test_gallery_damaged_behind_its_first_pages(gallery, tmp_path):
    """Met only when the images are read: said on the page, not a traceback."""
    path = gallery_file(tmp_path)
    content = path.read_bytes()
    start = 8 * int.from_bytes(content[16:18], "big")  # page size
    path.write_bytes(content[:start] + b"\xff" * (len(content) - start))

    assert BUILD_COMMAND in _problems(_open())[0]


# Galleries other than Fashion-MNIST ------------------------------------------------------------


def test_gallery_without_labels(tmp_path, serve):
    gallery = serve(_write_gallery(tmp_path, labels=()))

    page = _open(query="test-3", k="4")

    expected = _nearest(gallery, _direction(_query(gallery, 3)), 4).ids[0]
    assert not page.selectbox
    assert "agreement" not in _card(page)
    assert "Test image 3, 3.png" in _card(page)
    tiles = _tiles(page)
    assert [tile["value"] for tile in tiles] == [f"gallery-{i}" for i in expected]
    assert [line["text"] for line in tiles[0]["lines"]][1:] == [f"{expected[0]}.png"]
    assert {line["look"] for tile in tiles for line in tile["lines"]} == {"strong", ""}


def test_gallery_without_queries_is_searched_with_its_own_images(tmp_path, serve):
    serve(_write_gallery(tmp_path, sizes=(45, 0)))

    page = _open()

    assert [tile["value"] for tile in _tiles(page, "query")] == [f"gallery-{i}" for i in range(20)]
    assert _tiles(page)[0]["value"] == "gallery-0"
    assert _tiles(page)[0]["badge"] == "same image"


def test_gallery_smaller_than_what_the_server_returns(tmp_path, serve):
    serve(_write_gallery(tmp_path, sizes=(3, 1)))

    page = _open()

    assert page.subheader[0].value == "Top 3 similar images out of 3"
    assert sorted(tile["value"] for tile in _tiles(page)) == ["gallery-0", "gallery-1", "gallery-2"]


def test_large_rgb_images(tmp_path, serve):
    """Photos: no switches that suit objects on black only, and shown in color."""
    serve(
        _write_gallery(
            tmp_path,
            shape=(90, 120, 3),
            sizes=(5, 1),
            encoder_is_grayscale=False,
            encoder_height=20,
            encoder_width=10,
            shows_objects_on_black=False,
        )
    )
    page = _upload(_open(), "photo.png", encoded(quadrants(), "PNG"))

    assert not page.toggle(key="details").value
    assert len(page.toggle) == 1
    assert all(tile["source"].startswith("data:image/webp") for tile in _tiles(page))
    shown = _shown(page, "As the encoder sees it")
    assert shown.size == (10, 20)
    assert shown.mode == "RGB"
    red, green, blue = np.moveaxis(np.asarray(shown), 2, 0)
    assert (red != green).any() or (green != blue).any()


def test_side_panel_tells_what_is_served(gallery):
    page = _open()

    (served,) = [e.proto.body for e in page.get("html") if "<pre" in e.proto.body]
    for expected in (
        "Triton 2.99.0",
        "image_encoder  version 7",
        "INPUT__0 FP32 [*, 64]",
        "encoder_id encoder1",
        "gallery_id gallery1",
    ):
        assert expected in served


# An image of one's own ---------------------------------------------------------------------------


def _upload(page, name, data):
    page.segmented_control(key="source").set_value("Upload").run()
    page.file_uploader(key="upload").set_value((name, data, "image/png")).run()
    return page


def test_uploaded_image_is_searched_for(gallery):
    page = _upload(_open(), "boot.png", encoded(quadrants(), "PNG"))

    assert "photo" in page.query_params["query"]
    assert len(_tiles(page)) == 20
    assert "boot.png" in _card(page)
    assert "As the encoder sees it" in _card(page)
    assert not _problems(page)


def test_uploaded_copy_of_a_gallery_image_is_recognized(gallery):
    page = _open()
    page = _upload(page, "copy.png", encoded(Image.fromarray(gallery.images([9])[0].pixels), "PNG"))
    page.toggle(key="invert").set_value(False).run()
    page.toggle(key="crop").set_value(False).run()

    assert _tiles(page)[0]["value"] == "gallery-9"
    assert _tiles(page)[0]["badge"] == "same image"


def test_light_ground_is_inverted_and_that_can_be_undone(gallery):
    light = Image.new("L", (40, 40), 240)
    light.paste(30, (10, 10, 30, 30))
    page = _upload(_open(), "light.png", encoded(light, "PNG"))
    inverted = _card(page)
    assert page.toggle(key="invert").value is True

    page.toggle(key="invert").set_value(False).run()

    assert _card(page) != inverted


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.png", b"", "a.png: The file is empty (0 bytes)."),
        ("<i>.png", b"no image", "<i>.png: The file is not a PNG, JPEG"),
        (
            "cut.png",
            encoded(quadrants(), "PNG")[:100],
            "cut.png: The image is damaged or cut short",
        ),
    ],
)
def test_file_that_cannot_be_read(gallery, name, data, reason):
    page = _upload(_open(), name, data)

    (problem,) = _problems(page)
    assert problem.startswith(reason)
    assert not _tiles(page)


def test_good_image_after_a_bad_one(gallery):
    page = _upload(_open(), "bad.png", b"no image")
    _upload(page, "good.png", encoded(quadrants(), "PNG"))

    assert not _problems(page)
    assert len(_tiles(page)) == 20


def test_link_to_an_uploaded_image(gallery):
    page = _open(query="photo")

    assert _problems(page) == ["A link cannot carry an uploaded image. Upload it again."]
    assert not _tiles(page)
