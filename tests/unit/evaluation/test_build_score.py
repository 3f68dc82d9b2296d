"""A build's own score, and the quality gate that stops a broken build."""

import numpy as np
import pytest

from reverse_image_search.datasets import Dataset, LabeledImage
from reverse_image_search.evaluation.build_score import (
    QualityError,
    check_quality,
    draw_originals,
    score_build,
)

GATE = {"precision_at_1": 0.90, "recall_at_1": 0.85}
GOOD = {"precision_at_1": 0.93, "precision_at_20": 0.92, "map": 0.92, "recall_at_1": 0.94}


def test_a_good_score_passes():
    check_quality(GOOD, GATE)


@pytest.mark.parametrize(
    ("name", "value"),
    [("precision_at_1", 0.899), ("recall_at_1", 0.849), ("recall_at_1", float("nan"))],
)
def test_a_score_below_the_quality_gate_is_refused_by_name(name: str, value: float):
    with pytest.raises(QualityError, match=rf"{name} is .*expected.*--no-floor"):
        check_quality({**GOOD, name: value}, GATE)


def test_originals_are_drawn_once_each_and_always_the_same():
    ids = draw_originals(1000, 50)
    assert len(set(ids.tolist())) == 50
    assert np.array_equal(ids, draw_originals(1000, 50))
    assert draw_originals(5, 50).tolist() == [0, 1, 2, 3, 4]


def test_score_of_an_encoder_that_sees_only_how_wide_a_block_is():
    # Bright columns on black: 4 of them in class 0, 16 in class 1.
    labels = np.arange(40) % 2
    images = np.zeros((40, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 14 - (2, 8)[label] : 14 + (2, 8)[label]] = 200

    def embed(images: list[np.ndarray]) -> np.ndarray:
        is_wide = (np.stack(images) > 100).mean(axis=(1, 2)) > 0.3
        return np.eye(2, dtype=np.float32)[is_wide.astype(int)]

    names = ["narrow", "wide"]
    samples = [
        LabeledImage(image, "block", names[label])
        for image, label in zip(images, labels, strict=True)
    ]

    score = score_build(embed, embed(images), Dataset("blocks", samples, samples, names))

    assert score["precision_at_1"] == score["precision_at_20"] == score["map"] == 1.0
    # All 20 images of a class are alike: each copy finds the first one, and all 20 among 20.
    assert score["recall_at_1"] == pytest.approx(1 / 20)
    assert score["recall_at_20"] == 1.0


def test_images_without_labels_are_scored_by_their_copies_alone():
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)
    samples = [LabeledImage(image, "noise") for image in images]

    def embed(images: list[np.ndarray]) -> np.ndarray:  # grayscale means: alike for all copies
        means = np.stack(images).mean(axis=(1, 2))
        return np.stack([np.cos(means), np.sin(means)], axis=1).astype(np.float32)

    score = score_build(embed, embed(images), Dataset("noise", samples, [], []))

    assert set(score) == {"recall_at_1", "recall_at_20"}
