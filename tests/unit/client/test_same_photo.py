"""Copies of a photo are told from other photos; on textures that the test draws."""

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.client import same_photo
from reverse_image_search.client.duplicates import find_duplicates
from reverse_image_search.client.same_photo import SamePhotoCheck
from reverse_image_search.evaluation.photo_copies import PHOTO_KINDS, make_photo_copies
from reverse_image_search.gallery import Gallery, GalleryImage, GalleryMetadata, make_thumbnail
from reverse_image_search.gallery_writer import write_gallery
from tests.unit.client.test_duplicates import ExactServer

PHOTO, OTHER_PHOTO, SAME_BACKGROUND = 1, 2, 3
FIRST_COPY = 4
COPIES = list(range(FIRST_COPY, FIRST_COPY + len(PHOTO_KINDS)))
BLANK = COPIES[-1] + 1


def texture(seed: int) -> np.ndarray:
    """Blots of 8 pixels and of 32, in colors: (240, 320, 3) uint8."""
    generator = np.random.default_rng(seed)
    sizes = [(40, 30), (10, 8)]
    blots = [generator.integers(0, 256, (rows, columns, 3), np.uint8) for columns, rows in sizes]
    resized = [np.asarray(Image.fromarray(b).resize((320, 240), 3)).astype(int) for b in blots]
    return (sum(resized) // 2).astype(np.uint8)


@pytest.fixture
def gallery(tmp_path) -> Gallery:
    """Photos, and copies of the first, whose scores with it are those of the other photos."""
    copies = [make_photo_copies([texture(1)], kind)[0] for kind in PHOTO_KINDS]
    same_background = texture(1)
    same_background[50:200, 80:240] = texture(2)[50:200, 80:240]
    blank = np.zeros((240, 320, 3), np.uint8)
    images = [texture(1), texture(2), same_background, *copies, blank]
    scale = {"perturbed_copies": [0.7, 0.7, 0.8, 0.8, 0.9, 0.9, 1.0]}
    metadata = GalleryMetadata(
        "gallery", "encoder", "textures", [], 224, 224, False, False, True, scale, 0.95
    )
    rows = [
        GalleryImage(i, f"{i}.jpg", None, p.shape[1], p.shape[0], b"", make_thumbnail(p))
        for i, p in enumerate(images, start=PHOTO)
    ]
    embeddings = np.full((len(images), len(images) + 1), 0.2**0.5, np.float32)
    embeddings[:, :-1] = np.eye(len(images)) * 0.2**0.5
    embeddings[:, -1] = 0.8**0.5  # all pairs score 0.8
    path = tmp_path / "gallery.sqlite"
    write_gallery(path, metadata, rows, embeddings=embeddings)
    return Gallery(path)


def test_copies_of_all_kinds_are_of_the_same_photo_and_others_are_not(gallery):
    seen = []
    check = SamePhotoCheck(gallery, lambda *of: seen.append(of))

    of_photo = check(np.array([[PHOTO, copy] for copy in COPIES]), np.zeros(5, bool))
    others = [[PHOTO, OTHER_PHOTO], [PHOTO, SAME_BACKGROUND], [PHOTO, BLANK], [OTHER_PHOTO, 5]]
    of_others = check(np.array(others), np.zeros(4, bool))

    assert of_photo.tolist() == [True] * 5
    assert of_others.tolist() == [False] * 4
    assert seen == [(5, 5), (4, 4)]


def test_scores_decide_only_where_there_is_nothing_to_compare(gallery):
    pairs = np.array([[PHOTO, BLANK], [PHOTO, OTHER_PHOTO]])

    assert SamePhotoCheck(gallery)(pairs, np.array([True, True])).tolist() == [True, False]


def test_copies_are_grouped_though_no_score_reaches_the_threshold(gallery, monkeypatch):
    server = ExactServer(gallery, 100)
    monkeypatch.setattr("reverse_image_search.client.duplicates._CANDIDATES", 10)

    (group,) = find_duplicates(server, gallery, 0.95, same_photo=SamePhotoCheck(gallery))

    assert group.ids[0] == PHOTO
    assert sorted(group.ids) == [PHOTO, *COPIES]
    assert find_duplicates(server, gallery, 0.95) == []


def test_without_the_scores_of_copies_nothing_can_be_checked(gallery):
    assert same_photo.can_check(gallery)
    object.__setattr__(gallery.metadata, "score_scale", None)
    assert not same_photo.can_check(gallery)
