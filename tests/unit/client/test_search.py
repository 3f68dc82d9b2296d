"""No image is shown that could be a wrong one, and a search costs one request more."""

import itertools

import numpy as np
import pytest

from reverse_image_search.client import Neighbors, ServerNotReadyError, ServerUnreachableError
from reverse_image_search.client.search import (
    IndexIdentity,
    ServedIdentity,
    WrongAnswerError,
    check_identity,
    search_gallery,
    served_identity,
)

IMAGE = np.zeros((2, 2), np.uint8)
# What a server may be: encoder, and the encoder and the gallery of its index.
RIGHT = ("encoder 1", "encoder 1", "gallery 1")
REBUILT = ("encoder 2", "encoder 2", "gallery 2")
HALF_REBUILT = ("encoder 2", "encoder 1", "gallery 1")
ports = itertools.count(1)


class StubGallery:
    """Three images, ids 0 to 2."""

    encoder_id, gallery_id = "encoder 1", "gallery 1"

    def missing(self, ids):
        return [each for each in ids if each not in (0, 1, 2)]


class StubServer:
    """Client and server in one: `serves` is what it is when each of its requests comes.

    The last entry holds for all that follow. Its answers tell which server gave them: embeddings
    and ids are right only if encoder and index were `RIGHT`.
    """

    url = ""

    def __init__(self, *serves, ids=(2, 0), scores=(0.9, 0.5)):
        self._serves = list(serves) or [RIGHT]
        self._neighbors = Neighbors(np.array([ids]), np.array([scores], np.float32))
        self.requests = []

    def _next(self, request):
        self.requests.append(request)
        served = self._serves.pop(0) if len(self._serves) > 1 else self._serves[0]
        if isinstance(served, Exception):
            raise served
        return served

    def model_config(self, name):
        encoder, index_encoder, gallery = self._next(f"config {name}")
        parameters, version = {"encoder_id": encoder}, encoder[-1:]
        if name == "vector_similarity":
            parameters = {"encoder_id": index_encoder, "gallery_id": gallery}
            version = index_encoder[-1:]
        return {
            "name": name,
            "version_policy": {"specific": {"versions": [version]}},
            "parameters": {
                key: {"string_value": value} for key, value in parameters.items() if value
            },
        }

    def embed(self, images, version):
        assert images == [IMAGE]
        served = self._next("embed")
        if not served[0].endswith(version):
            raise ServerNotReadyError("unknown version")
        return np.array([[1.0, 0.0]]) if served == RIGHT else np.array([[9.0, 9.0]])

    def find_similar(self, embeddings, version):
        served = self._next("find")
        if not served[1].endswith(version):
            raise ServerNotReadyError("unknown version")
        is_same_index = served[1:] == RIGHT[1:]
        right = is_same_index and embeddings.tolist() == [[1.0, 0.0]]
        return self._neighbors if right else Neighbors(np.array([[1]]), np.array([[0.1]]))


@pytest.fixture
def gallery():
    return StubGallery()


@pytest.fixture
def known(address, gallery):
    """A search that has been: the identity of the server at the stubs' address is known."""
    search_gallery(StubServer(), gallery, IMAGE)


@pytest.fixture(autouse=True)
def address(monkeypatch):
    """Another one for each test: what is known of a server is known by its address."""
    monkeypatch.setattr(StubServer, "url", f"http://stub:{next(ports)}")


def is_right(answer):
    return answer.ids.tolist() == [2, 0] and answer.scores.tolist() == pytest.approx([0.9, 0.5])


def test_ids_and_scores_come_as_the_server_gave_them(gallery):
    answer = search_gallery(StubServer(), gallery, IMAGE)

    assert is_right(answer)
    assert answer.embed_ms >= 0
    assert answer.find_ms >= 0


def test_a_search_costs_one_request_more(known, gallery):
    server = StubServer()
    for _ in range(3):
        search_gallery(server, gallery, IMAGE)

    assert server.requests == 3 * [
        "embed",
        "find",
        "config vector_similarity",
    ]


@pytest.mark.parametrize(
    "served",
    [
        REBUILT,
        ("", "", ""),  # models of somebody else
        HALF_REBUILT,
        ("encoder 1", "encoder 2", "gallery 1"),
        ("encoder 1", "encoder 1", "gallery 2"),
        ("encoder 2", "encoder 2", "gallery 1"),
    ],
)
def test_models_of_another_build_are_not_even_asked(gallery, served):
    server = StubServer(served)

    with pytest.raises(WrongAnswerError, match=r"another build.*start_inference_server_cpu\.sh"):
        search_gallery(server, gallery, IMAGE, switch_timeout=0)
    with pytest.raises(WrongAnswerError, match="another build"):
        check_identity(server, gallery)
    assert not {"embed", "find"} & set(server.requests)


def test_models_of_the_gallery_belong_to_it(gallery):
    check_identity(StubServer(), gallery)


def test_the_identity_is_read_as_it_is_served():
    served = StubServer(("encoder 1", "encoder 2", "gallery 3"))

    assert served_identity(served) == ServedIdentity(
        "encoder 1", IndexIdentity("encoder 2", "gallery 3")
    )


@pytest.mark.parametrize("served", [REBUILT, HALF_REBUILT])
@pytest.mark.parametrize("position", range(5))
def test_a_server_replaced_during_a_search_never_shows_a_wrong_image(
    known, gallery, position, served
):
    """By another build, before the embedding, between the calls, after them, or not at all."""
    server = StubServer(*(position * [RIGHT]), served)

    # Half of another build is its encoder, which has answered before it is replaced.
    if position >= (3 if served == REBUILT else 1):
        assert is_right(search_gallery(server, gallery, IMAGE))
    else:
        with pytest.raises(WrongAnswerError, match="another build"):
            search_gallery(server, gallery, IMAGE, switch_timeout=0)


def test_the_second_half_of_a_build_is_waited_for(known, gallery):
    """The index is the new one, and embeddings are still those of the old encoder."""
    server = StubServer(*(7 * [HALF_REBUILT]), RIGHT)

    assert is_right(search_gallery(server, gallery, IMAGE))


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("position", range(5))
def test_a_server_that_becomes_the_right_one(gallery, position, stale):
    """The gallery is the new one already; what is known may be the server that was there before."""
    if stale:
        served_identity(StubServer(REBUILT))
    server = StubServer(*(position * [REBUILT]), RIGHT)

    if position <= (1 if stale else 3):  # both configurations are read again
        assert is_right(search_gallery(server, gallery, IMAGE))
    else:
        with pytest.raises(WrongAnswerError):
            search_gallery(server, gallery, IMAGE)
        assert is_right(search_gallery(StubServer(), gallery, IMAGE))


def test_a_server_replaced_in_every_search_is_an_error(known, gallery):
    server = StubServer(RIGHT, RIGHT, REBUILT, REBUILT, *(5 * [RIGHT]), REBUILT)

    with pytest.raises(WrongAnswerError, match=r"replaced during the search.*Search again"):
        search_gallery(server, gallery, IMAGE)
    assert server.requests.count("find") == 2


@pytest.mark.parametrize("other", [REBUILT, HALF_REBUILT])
def test_replicas_of_different_builds_never_share_a_search(known, gallery, other):
    """A balancer asks them in any order, so a question after the answers may meet another one."""
    both_read = [RIGHT, RIGHT]
    server = StubServer(RIGHT, other, *both_read, other, *both_read, RIGHT, other, RIGHT)

    assert is_right(search_gallery(server, gallery, IMAGE))


def test_an_encoder_replaced_alone_is_noticed_when_both_are_read(known, gallery):
    server = StubServer(HALF_REBUILT)

    with pytest.raises(WrongAnswerError, match="another build"):
        check_identity(server, gallery)
    with pytest.raises(WrongAnswerError, match="another build"):
        search_gallery(server, gallery, IMAGE, switch_timeout=0)


def test_a_server_gone_after_it_answered(known, gallery):
    """Which build answered is not known then."""
    server = StubServer(RIGHT, RIGHT, ServerUnreachableError("gone"))

    with pytest.raises(ServerUnreachableError):
        search_gallery(server, gallery, IMAGE)


def test_padding_is_not_a_neighbor(gallery):
    """A gallery with fewer than K images; what stands beside -1 is no score."""
    server = StubServer(ids=(2, 0, -1, -1), scores=(0.9, 0.5, np.nan, -np.inf))

    assert is_right(search_gallery(server, gallery, IMAGE))


@pytest.mark.parametrize("ids", [(0, 3), (-2, 0)])
def test_ids_outside_the_gallery(gallery, ids):
    with pytest.raises(WrongAnswerError, match=r"does not have, such as (3|-2)\..*build_models"):
        search_gallery(StubServer(ids=ids), gallery, IMAGE)


@pytest.mark.parametrize(("ids", "scores"), [((-1, -1), (0, 0)), ((0, 1), (0.5, np.nan))])
def test_no_neighbors_or_no_scores(gallery, ids, scores):
    with pytest.raises(WrongAnswerError, match=r"neighbors, or scores.*build_models"):
        search_gallery(StubServer(ids=ids, scores=scores), gallery, IMAGE)
