"""Nothing is shown that could be a wrong picture."""

import numpy as np
import pytest

from reverse_image_search.client import Neighbors, ServerUnreachableError
from reverse_image_search.client.search import WrongAnswerError, search_gallery
from reverse_image_search.gallery import Gallery

IMAGE = np.zeros((2, 2), np.uint8)


class StubClient:
    """Answers what it is told to; `build_ids` a list of answers, one for each call."""

    def __init__(self, build_ids=("a",), ids=(2, 0), scores=(0.9, 0.5)):
        self._build_ids = list(build_ids)
        self._neighbors = Neighbors(np.array([ids]), np.array([scores], np.float32))
        self.searches = 0

    def build_ids(self):
        build_id = self._build_ids.pop(0) if len(self._build_ids) > 1 else self._build_ids[0]
        if isinstance(build_id, Exception):
            raise build_id
        if isinstance(build_id, str):
            build_id = {"image_encoder": build_id, "vector_similarity": build_id}
        return build_id

    def embed(self, images):
        self.searches += 1
        assert images == [IMAGE]
        return np.array([[1.0, 0.0]], np.float32)

    def find_similar(self, embeddings):
        assert embeddings.tolist() == [[1.0, 0.0]]
        return self._neighbors


@pytest.fixture
def gallery():
    """Three pictures of build "a"."""
    pictures, labels = np.zeros((3, 2, 2), np.uint8), np.zeros(3, int)
    return Gallery("a", "Test", ["Bag"], pictures, labels, pictures, labels)


def test_ids_and_scores_come_as_the_server_gave_them(gallery):
    answer = search_gallery(StubClient(), gallery, IMAGE)

    assert answer.ids.tolist() == [2, 0]
    assert answer.scores.tolist() == pytest.approx([0.9, 0.5])
    assert answer.embed_ms >= 0
    assert answer.find_ms >= 0


@pytest.mark.parametrize(
    "served",
    [
        "b",
        "",  # the models carry none
        {"image_encoder": "a", "vector_similarity": "b"},
        {"image_encoder": "b", "vector_similarity": "a"},
    ],
)
def test_models_of_another_build_are_not_even_asked(gallery, served):
    client = StubClient(build_ids=[served])

    with pytest.raises(WrongAnswerError, match=r"another build.*start_inference_server_cpu\.sh"):
        search_gallery(client, gallery, IMAGE)
    assert client.searches == 0


def test_server_restarted_with_another_build_while_it_was_asked(gallery):
    with pytest.raises(WrongAnswerError, match="another build"):
        search_gallery(StubClient(build_ids=["a", "b"]), gallery, IMAGE)


def test_server_gone_after_it_answered(gallery):
    """Which build answered is not known then."""
    client = StubClient(build_ids=["a", ServerUnreachableError("gone")])

    with pytest.raises(ServerUnreachableError):
        search_gallery(client, gallery, IMAGE)


@pytest.mark.parametrize("ids", [(0, 3), (-1, 0)])
def test_ids_outside_the_gallery(gallery, ids):
    """A negative id would show a picture, counted from the end."""
    with pytest.raises(WrongAnswerError, match=r"gallery has 3 images.*build_models\.sh"):
        search_gallery(StubClient(ids=ids), gallery, IMAGE)
