"""The scale of scores, on images whose similarities are known by hand."""

import numpy as np
import pytest

from reverse_image_search.evaluation.score_scale import measure_score_scale
from reverse_image_search.gallery import SCORE_QUANTILES


def even_images(count: int) -> list[np.ndarray]:
    """Even gray images of 8 x 8 pixels; the number of an image is its only content."""
    return [np.full((8, 8), number, np.uint8) for number in range(count)]


def at_angles(degrees) -> np.ndarray:
    """Unit vectors (n, 2)."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def test_quantiles_are_of_the_pairs_that_they_name():
    # Two labels at a right angle, 1 degree wide each; one image has no label, opposite the first.
    degrees = np.array([0, 1, 0.5, 90, 91, 90.5, 180])
    labels = ["a", "a", "a", "b", "b", "b", None]

    def embed(images):  # every copy is 60 degrees from the first image, or from the fourth
        return at_angles([60.0] * len(images))

    scale = measure_score_scale(embed, even_images(7), at_angles(degrees), labels, is_photos=False)

    assert set(scale.score_scale) == {"random_pairs", "perturbed_copies", "same_label"}
    assert all(len(values) == len(SCORE_QUANTILES) == 7 for values in scale.score_scale.values())
    assert scale.score_scale["random_pairs"][0] == pytest.approx(-1, abs=1e-3)
    assert scale.score_scale["random_pairs"][-1] == pytest.approx(np.cos(np.radians(0.5)), abs=1e-4)
    same_label = np.cos(np.radians([1, 0.5])).round(4)
    assert scale.score_scale["same_label"][0] == pytest.approx(same_label[0], abs=1e-4)
    assert scale.score_scale["same_label"][-1] == pytest.approx(same_label[1], abs=1e-4)
    copies = np.cos(np.radians(60 - degrees))
    assert scale.score_scale["perturbed_copies"][0] == pytest.approx(copies.min(), abs=1e-4)
    assert scale.score_scale["perturbed_copies"][-1] == pytest.approx(copies.max(), abs=1e-4)


def test_without_labels_there_is_no_scale_of_them():
    embeddings = at_angles([0, 40, 80])

    scale = measure_score_scale(
        lambda images: embeddings[: len(images)], even_images(3), embeddings, [None] * 3, False
    )

    assert set(scale.score_scale) == {"random_pairs", "perturbed_copies"}


class Watched(list):
    """A list that knows which of its items were read."""

    read: list[int]

    def __getitem__(self, row):
        self.read.append(int(row))
        return super().__getitem__(row)


@pytest.mark.parametrize("duplicates", [0, 20])
def test_the_threshold_is_between_neighbors_and_copies(duplicates: int):
    """Images are 3 degrees apart, and copies 1 degree from their original. Of some folders, a
    sixth of the images are duplicates, 0.2 degrees from another one."""
    degrees = np.concatenate([np.arange(100) * 3.0, np.arange(duplicates) * 3 + 0.2])
    images = Watched(even_images(len(degrees)))
    images.read = []

    def embed(copies):  # of the images that were read last
        return at_angles(degrees[images.read[-len(copies) :]] + 1)

    scale = measure_score_scale(embed, images, at_angles(degrees), [None] * len(images), True)

    between_images = np.cos(np.radians(2.8 if duplicates else 3))
    assert between_images < scale.duplicate_threshold < np.cos(np.radians(1))
