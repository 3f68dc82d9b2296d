"""Random views stay images and move no further than their docstrings say."""

import pytest
import torch

from reverse_image_search.training.augmentation import random_horizontal_flip, strong_view


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_about_half_of_the_images_are_flipped_and_nothing_else():
    images = torch.rand(1000, 1, 4, 5)
    views = random_horizontal_flip(images)
    same = (views == images).all(dim=(1, 2, 3))
    mirrored = (views == images.flip(3)).all(dim=(1, 2, 3))
    assert (same | mirrored).all()
    assert 450 < mirrored.sum() < 550


def test_strong_view_gives_images_of_the_same_shape():
    images = torch.rand(20, 1, 28, 28)
    views = strong_view(images)
    assert views.shape == images.shape
    assert views.min() >= 0.0
    assert views.max() <= 1.0
    assert (views - images).abs().mean(dim=(1, 2, 3)).min() > 0.01, "each image changes"


def test_strong_view_of_black_is_nearly_black():
    views = strong_view(torch.zeros(100, 1, 28, 28))
    assert views.max() < 0.06 + 6 * 0.03


def test_strong_view_moves_a_dot_no_further_than_it_says():
    dots = torch.zeros(500, 1, 28, 28)
    dots[:, :, 13:15, 13:15] = 1.0  # the center, which turning and mirroring leave in place
    places = strong_view(dots).flatten(1).argmax(dim=1)
    rows, columns = places // 28 + 0.5, places % 28 + 0.5
    distance = torch.stack([rows - 14, columns - 14]).abs().max(dim=1).values
    # 16 % of 28 pixels, zoomed by up to 1.12, and half the dot
    assert (distance <= 0.16 * 28 * 1.12 + 1.5).all()
    assert (distance >= 3).all()


def test_the_same_seed_draws_the_same_views():
    images = torch.rand(4, 1, 28, 28)
    torch.manual_seed(5)
    first = strong_view(images)
    torch.manual_seed(5)
    assert torch.equal(first, strong_view(images))
