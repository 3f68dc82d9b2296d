"""A build's own score, and the quality gate that stops a broken build."""

import numpy as np
import pytest

from reverse_image_search.datasets import LabeledImage
from reverse_image_search.evaluation.build_score import (
    QualityError,
    check_quality,
    draw_own_queries,
    print_score,
    score_build,
)
from reverse_image_search.evaluation.originals import draw_originals
from reverse_image_search.training.adaptation import is_held_out

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


def test_a_score_is_printed_with_the_number_of_its_queries(capsys):
    print_score({"recall_at_1": np.ones(1200), "recall_at_20": np.ones(1200)})
    means = "R@1 1.000 [1.000, 1.000], R@20 1.000 [1.000, 1.000]"
    first, _note = capsys.readouterr().out.splitlines()
    assert first == f"  perturbed copies: {means} (1,200 drawn at random)"

    print_score({})  # an update is not scored again
    assert capsys.readouterr().out == ""


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

    names = [("narrow", "wide")[label] for label in labels]
    queries = [LabeledImage(image, "", name) for image, name in zip(images, names, strict=True)]

    score = score_build(embed, list(images), embed(images), names, queries, is_photos=False)

    for metric in ("precision_at_1", "precision_at_20", "map"):
        assert score[metric].tolist() == [1.0] * 40
    # All 20 images of a class are alike: each copy finds the first one, and all 20 among 20.
    assert score["recall_at_1"].mean() == pytest.approx(1 / 20)
    assert score["recall_at_20"].mean() == 1.0

    # Without queries, each image has 19 others of its class.
    score = score_build(embed, list(images), embed(images), names, [], is_photos=False)
    assert score["precision_at_1"].tolist() == [1.0] * 40
    assert score["precision_at_20"] == pytest.approx(np.full(40, 19 / 20))


@pytest.mark.parametrize("is_photos", [False, True])
def test_images_without_labels_are_scored_by_their_copies_alone(is_photos: bool):
    images = np.random.default_rng(0).integers(0, 256, (30, 28, 28), np.uint8)

    def embed(images: list[np.ndarray]) -> np.ndarray:  # grayscale means: alike for all copies
        means = np.array([image.mean() for image in images])
        return np.stack([np.cos(means), np.sin(means)], axis=1).astype(np.float32)

    score = score_build(embed, list(images), embed(images), [None] * 30, [], is_photos)

    assert set(score) == {"recall_at_1", "recall_at_20"}
    assert len(score["recall_at_1"]) == 30


def test_queries_of_a_gallery_had_no_part_in_adapting_its_encoder():
    sources, labels = [f"photo {i}" for i in range(1000)], np.zeros(1000, int)
    labels[::2] = -1  # no label
    rows = draw_own_queries(labels, sources, count=2000)
    assert 60 < len(rows) < 140  # a fifth of the labeled half
    assert all(is_held_out(sources[row]) and labels[row] == 0 for row in rows)
    # A small gallery is not adapted to.
    assert draw_own_queries(labels[:100], sources[:100], count=2000).tolist() == [*range(1, 100, 2)]
