"""Groups of near-duplicates, on unit vectors whose angles a reader can compare."""

import numpy as np
import pytest

from reverse_image_search.client import Neighbors
from reverse_image_search.client.duplicates import find_duplicates
from reverse_image_search.client.search import WrongAnswerError
from reverse_image_search.gallery import Gallery, GalleryImage, GalleryMetadata
from reverse_image_search.gallery_writer import write_gallery

SIX_DEGREES = np.cos(np.radians(6))


class ExactServer:
    """Client and server in one: an exact index of K neighbors on a gallery."""

    url = "http://exact"

    def __init__(self, gallery: Gallery, k: int):
        self._gallery, self._k = gallery, k
        self.gallery_id = gallery.gallery_id

    def model_config(self, _name):
        parameters = {"encoder_id": self._gallery.encoder_id, "gallery_id": self.gallery_id}
        return {"parameters": {k: {"string_value": v} for k, v in parameters.items()}}

    def find_similar(self, queries):
        ids, embeddings = self._gallery.embeddings()
        similarity = queries @ embeddings.T
        order = np.argsort(-similarity, axis=1, kind="stable")[:, : self._k]
        scores = np.take_along_axis(similarity, order, axis=1)
        padding = ((0, 0), (0, self._k - order.shape[1]))
        return Neighbors(
            np.pad(ids[order], padding, constant_values=-1),
            np.pad(scores, padding, constant_values=-np.inf),
        )


@pytest.fixture
def make_gallery(tmp_path):
    """``make_gallery({id: (degrees, width)})``: images at angles in a plane, all of height 10."""

    def make(images: dict[int, tuple[float, int]]) -> Gallery:
        metadata = GalleryMetadata("gallery 1", "encoder 1", "angles", [], 1, 1, False, False)
        rows = [GalleryImage(i, "", None, w, 10, b"", b"") for i, (_, w) in images.items()]
        angles = np.radians([angle for angle, _ in images.values()])
        embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
        path = tmp_path / "gallery.sqlite"
        write_gallery(path, metadata, rows, embeddings=embeddings)
        return Gallery(path)

    return make


def groups_of(gallery: Gallery, k: int = 100, threshold: float = SIX_DEGREES) -> list[list[int]]:
    return [g.ids.tolist() for g in find_duplicates(ExactServer(gallery, k), gallery, threshold)]


def test_the_largest_image_is_kept_and_the_most_similar_comes_next(make_gallery):
    gallery = make_gallery({3: (0, 10), 7: (5, 30), 8: (7, 20), 20: (90, 10), 21: (180, 10)})

    (group,) = find_duplicates(ExactServer(gallery, 100), gallery, SIX_DEGREES)

    assert group.ids.tolist() == [7, 8, 3]
    np.testing.assert_allclose(group.scores, np.cos(np.radians([0, 2, 5])), atol=1e-6)


def test_a_chain_of_similar_images_is_not_one_group(make_gallery):
    chain = {0: (0, 90), 1: (5, 80), 2: (10, 70), 3: (15, 60), 4: (20, 50)}

    assert groups_of(make_gallery(chain)) == [[0, 1], [2, 3]]


def test_more_duplicates_than_the_index_returns_are_one_group(make_gallery):
    images = {i: (0.001 * i, 10) for i in range(200)} | {200: (90, 10), 201: (91, 10)}

    assert groups_of(make_gallery(images), k=3) == [list(range(200)), [200, 201]]


def test_groups_are_those_of_a_plain_loop(make_gallery):
    generator = np.random.default_rng(0)
    angles, widths = generator.uniform(0, 360, 150), generator.permutation(150) + 1
    gallery = make_gallery(dict(enumerate(zip(angles.tolist(), widths.tolist(), strict=True))))

    expected, free = [], set(range(150))
    for kept in np.argsort(-widths).tolist():
        distance = {i: abs((angles[i] - angles[kept] + 180) % 360 - 180) for i in free - {kept}}
        members = sorted((i for i in distance if distance[i] <= 6), key=distance.__getitem__)
        if kept in free and members:
            expected.append([kept, *members])
            free -= {kept, *members}
    assert groups_of(gallery) == sorted(expected, key=len, reverse=True)


def test_progress_counts_to_the_size_of_the_gallery(make_gallery):
    gallery, seen = make_gallery({i: (i, 10) for i in range(150)}), []

    find_duplicates(ExactServer(gallery, 5), gallery, 0.999, lambda *of: seen.append(of))

    assert seen == [(64, 150), (128, 150), (150, 150)]


def test_a_server_of_another_gallery_is_refused(make_gallery):
    gallery = make_gallery({0: (0, 10), 1: (0, 10)})
    server = ExactServer(gallery, 5)
    server.gallery_id = "gallery 2"

    with pytest.raises(WrongAnswerError, match="another build"):
        find_duplicates(server, gallery, 0.9)
