"""Nothing is shown that could be a wrong image."""

import numpy as np
import pytest

from reverse_image_search.client import Neighbors, ServerUnreachableError
from reverse_image_search.client.search import WrongAnswerError, search_gallery
from reverse_image_search.gallery import (
    Gallery,
    GalleryImage,
    GalleryMetadata,
    GalleryWriter,
    make_thumbnail,
)

IMAGE = np.zeros((2, 2), np.uint8)


class StubClient:
    """Answers what it is told to; `served` has one (encoder_id, gallery_id) for each check."""

    def __init__(self, served=(("e", "g"),), ids=(7, 2), scores=(0.9, 0.5)):
        self._served = list(served)
        self._neighbors = Neighbors(np.array([ids]), np.array([scores], np.float32))
        self.searches = 0

    def model_config(self, name):
        served = self._served[0]
        if name == "vector_similarity" and len(self._served) > 1:
            self._served.pop(0)
        if isinstance(served, Exception):
            raise served
        encoder_id, gallery_id = served
        ids = {"encoder_id": encoder_id}
        if name == "vector_similarity":
            ids["gallery_id"] = gallery_id
        return {"parameters": {k: {"string_value": v} for k, v in ids.items() if v}}

    def embed(self, images):
        self.searches += 1
        assert images == [IMAGE]
        return np.array([[1.0, 0.0]], np.float32)

    def find_similar(self, embeddings):
        assert embeddings.tolist() == [[1.0, 0.0]]
        return self._neighbors


@pytest.fixture
def gallery(tmp_path):
    """Images 2, 5 and 7 of gallery "g", embedded by encoder "e"."""
    file = make_thumbnail(IMAGE)
    with GalleryWriter(tmp_path / "gallery.sqlite") as writer:
        writer.add_images(GalleryImage(i, str(i), None, 2, 2, b"", file) for i in (2, 5, 7))
        writer.set_metadata(GalleryMetadata("g", "e", "Test", [], 28, 28, True, True))
    return Gallery(tmp_path / "gallery.sqlite")


def test_ids_and_scores_come_as_the_server_gave_them(gallery):
    answer = search_gallery(StubClient(), gallery, IMAGE)

    assert answer.ids.tolist() == [7, 2]
    assert answer.scores.tolist() == pytest.approx([0.9, 0.5])
    assert answer.embed_ms >= 0
    assert answer.find_ms >= 0


def test_padding_is_left_out(gallery):
    client = StubClient(ids=(5, 2, -1, -1), scores=(0.9, 0.5, -3e38, -3e38))

    answer = search_gallery(client, gallery, IMAGE)

    assert answer.ids.tolist() == [5, 2]
    assert answer.scores.tolist() == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize("served", [("other", "g"), ("e", "other"), ("", "g"), ("e", ""), ("", "")])
def test_models_of_another_build_are_not_even_asked(gallery, served):
    client = StubClient([served])

    with pytest.raises(WrongAnswerError, match=r"another build.*start_inference_server_cpu\.sh"):
        search_gallery(client, gallery, IMAGE)
    assert client.searches == 0


def test_server_restarted_with_another_build_while_it_was_asked(gallery):
    with pytest.raises(WrongAnswerError, match="another build"):
        search_gallery(StubClient([("e", "g"), ("e", "other")]), gallery, IMAGE)


def test_server_gone_after_it_answered(gallery):
    """Which build answered is not known then."""
    client = StubClient([("e", "g"), ServerUnreachableError("gone")])

    with pytest.raises(ServerUnreachableError):
        search_gallery(client, gallery, IMAGE)


@pytest.mark.parametrize("ids", [(5, 3), (-2, 5)])
def test_ids_that_the_gallery_does_not_have(gallery, ids):
    with pytest.raises(WrongAnswerError, match=r"gallery does not have.*build_models\.sh"):
        search_gallery(StubClient(ids=ids), gallery, IMAGE)
