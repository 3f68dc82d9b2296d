"""Copies differ from their originals in the way that their name says, within the stated range."""

import numpy as np
import pytest

from reverse_image_search.evaluation import copies
from reverse_image_search.evaluation.copies import KINDS, make_copies


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """200 times a bright 6 x 4 block on black, its center at row 14, column 14."""
    images = np.zeros((200, 28, 28), dtype=np.uint8)
    images[:, 11:17, 12:16] = 200
    return images


def _center(images: np.ndarray) -> np.ndarray:  # (n, 2) row and column of the center of mass
    mass = images / images.sum(axis=(1, 2), keepdims=True)
    places = np.arange(images.shape[1]) + 0.5
    return np.stack([mass.sum(axis=2) @ places, mass.sum(axis=1) @ places], axis=1)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_images_and_the_same_seed_draws_the_same(images: np.ndarray, kind: str):
    drawn = make_copies(images, kind, seed=3)
    side = 22 if kind == "crop" else 28
    assert drawn.shape == (200, side, side)
    assert drawn.dtype == np.uint8
    assert np.array_equal(drawn, make_copies(images, kind, seed=3))
    if kind not in ("mirror", "jpeg"):  # nothing is drawn there
        assert not np.array_equal(drawn, make_copies(images, kind, seed=4))


def test_the_original_is_left_alone(images: np.ndarray):
    before = images.copy()
    for kind in KINDS:
        make_copies(images, kind)
    assert np.array_equal(images, before)


def test_shift_moves_by_up_to_14_percent(images: np.ndarray):
    moved = _center(make_copies(images, "shift")) - 14
    assert np.abs(moved).max() <= 0.14 * 28 + 0.05
    assert np.abs(moved).max() > 3.5  # of 3.92 pixels, in 400 draws
    assert np.abs(moved.mean(axis=0)).max() < 0.6


def test_rotation_turns_by_up_to_10_degrees_about_the_center():
    bar = np.zeros((200, 28, 28), dtype=np.uint8)
    bar[:, 13:15, 4:24] = 255
    turned = make_copies(bar, "rotation")
    assert _center(turned) == pytest.approx(np.full((200, 2), 14.0), abs=0.1)
    heights = [
        (column * (np.arange(28) + 0.5)).sum() / column.sum() - 14
        for column in turned[:, :, 22].astype(float)  # 8.5 pixels from the center
    ]
    degrees = np.degrees(np.arctan(np.array(heights) / 8.5))
    assert 9 < np.abs(degrees).max() < 10.5


def test_scale_zooms_from_0_9_to_1_1():
    squares = np.zeros((200, 28, 28), dtype=np.uint8)
    squares[:, 4:24, 4:24] = 200
    zoomed = make_copies(squares, "scale")
    sides = np.sqrt(zoomed.sum(axis=(1, 2)) / squares.sum(axis=(1, 2)))
    assert sides.min() == pytest.approx(0.9, abs=0.01)
    assert sides.max() == pytest.approx(1.1, abs=0.01)
    assert _center(zoomed) == pytest.approx(np.full((200, 2), 14.0), abs=0.1)


def test_flip_swaps_left_and_right(images: np.ndarray):
    images = images.copy()
    images[:, 0, 0] = 9
    assert np.array_equal(make_copies(images, "mirror"), images[:, :, ::-1])


def test_brightness_is_multiplied_and_moved_within_its_range():
    gray = np.full((500, 28, 28), 100, dtype=np.uint8)
    values = make_copies(gray, "brightness")[:, 0, 0].astype(float)
    assert 80 - 13 <= values.min() < 85
    assert 115 < values.max() <= 120 + 13
    assert len(np.unique(values)) > 20


def test_noise_has_a_deviation_of_3_percent():
    gray = np.full((50, 28, 28), 128, dtype=np.uint8)
    noise = make_copies(gray, "noise").astype(float) - 128
    assert noise.std() == pytest.approx(0.03 * 255, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.2)


def test_jpeg_changes_little_but_something(images: np.ndarray):
    generator = np.random.default_rng(0)
    textured = generator.integers(0, 256, size=(4, 28, 28), dtype=np.uint8)
    difference = np.abs(make_copies(textured, "jpeg").astype(int) - textured)
    assert 1 < difference.mean() < 40


def test_crop_is_a_window_of_the_image():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, size=(1, 28, 28), dtype=np.uint8)
    (crop,) = make_copies(image, "crop")
    windows = np.lib.stride_tricks.sliding_window_view(image[0], (22, 22))
    assert (windows == crop).all(axis=(2, 3)).sum() == 1


def test_occlusion_covers_one_square_of_8_by_8():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, size=(1, 28, 28), dtype=np.uint8)
    (occluded,) = make_copies(image, "occlusion")
    rows, columns = np.nonzero(occluded != image[0])
    assert rows.max() - rows.min() == columns.max() - columns.min() == 7
    assert len(np.unique(occluded[rows, columns])) == 1


def test_all_flips_about_half():
    images = np.zeros((300, 28, 28), dtype=np.uint8)
    images[:, 8:20, 8:14] = 200  # left half only
    drawn = make_copies(images, copies.ALL)
    # Up to 4 pixels of shift leave the block's center on its side or nearly so.
    on_the_right = (_center(drawn)[:, 1] > 14).mean()
    assert 0.35 < on_the_right < 0.65


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown kind of copy 'blur'; there are shift"):
        make_copies(np.zeros((1, 28, 28), np.uint8), "blur")


@pytest.mark.parametrize("kind", KINDS)
def test_color_images_and_images_of_several_sizes_are_copied(kind):
    generator = np.random.default_rng(0)
    same = generator.integers(0, 256, (3, 30, 20, 3), np.uint8)
    mixed = [same[0], generator.integers(0, 256, (40, 20), np.uint8)]

    copies_of_same, copies_of_mixed = make_copies(same, kind), make_copies(mixed, kind)

    shrink = 0.8 if kind == "crop" else 1
    assert copies_of_same.shape == (3, 30 * shrink, 20 * shrink, 3)
    assert [copy.shape for copy in copies_of_mixed] == [
        (30 * shrink, 20 * shrink, 3),
        (40 * shrink, 20 * shrink),
    ]


def test_a_flip_keeps_the_colors():
    image = np.zeros((1, 4, 4, 3), np.uint8)
    image[0, :, 0] = (255, 102, 0)

    (flipped,) = make_copies(image, "mirror")

    assert (flipped[:, 3] == (255, 102, 0)).all()
    assert (flipped[:, :3] == 0).all()
