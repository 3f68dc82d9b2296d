"""Copies of photos differ from their originals in the way that their name says."""

import numpy as np
import pytest

from reverse_image_search.evaluation.photo_copies import PHOTO_KINDS, make_photo_copies

# Where a pixel is says its color: red rises to the right, green to the bottom.
WIDTH, HEIGHT = 200, 100
PHOTO = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
PHOTO[..., 0] = np.arange(WIDTH)
PHOTO[..., 1] = np.arange(HEIGHT)[:, None]
PHOTO[..., 2] = 100


@pytest.mark.parametrize("kind", PHOTO_KINDS)
def test_copies_are_of_any_size_and_the_same_seed_draws_the_same(kind):
    images = [PHOTO, PHOTO[:60, :40], PHOTO[..., 0]]

    copies = make_photo_copies(images, kind, seed=3)

    is_cropped = kind in ("crop", "all")
    sizes = [(75, 150), (45, 30), (75, 150)] if is_cropped else [(100, 200), (60, 40), (100, 200)]
    assert [copy.shape for copy in copies] == [(*size, 3) for size in sizes]
    assert all(copy.dtype == np.uint8 for copy in copies)
    again = make_photo_copies(images, kind, seed=3)
    assert all(map(np.array_equal, copies, again))
    if kind != "jpeg":  # nothing is drawn there
        assert not np.array_equal(make_photo_copies(images, kind, seed=4)[0], copies[0])


def test_a_crop_is_a_part_of_the_photo():
    (crop,) = make_photo_copies([PHOTO], "crop")
    left, top = crop[0, 0, :2]
    assert np.array_equal(crop, PHOTO[top : top + 75, left : left + 150])


def test_a_turned_photo_keeps_its_center_and_turns_by_10_degrees_at_most():
    turned = make_photo_copies([PHOTO] * 50, "turn")
    # Of a point `r` right of the center, green changes by r sin(angle).
    offsets = [int(copy[50, 180, 1]) - 50 for copy in turned]
    assert all(abs(int(copy[50, 100, 0]) - 100) <= 1 for copy in turned)
    assert 8 < max(map(abs, offsets)) <= 80 * np.sin(np.radians(10)) + 1


def test_colors_change_within_their_range():
    gray = np.full((20, 20, 3), 100, np.uint8)
    brightness = [int(copy[0, 0, 0]) for copy in make_photo_copies([gray] * 100, "color")]
    # Contrast and saturation leave an even gray as it is.
    assert 68 <= min(brightness) < 80
    assert 120 < max(brightness) <= 132


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'blur'; there are crop, turn, color, jpeg, all"):
        make_photo_copies([PHOTO], "blur")
