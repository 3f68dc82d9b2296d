"""Every form of an image that a program may pass: the right pixels, or a reason."""

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.client.tensors import batches_of_one_shape, to_tensor, to_tensors
from reverse_image_search.image_file import MAX_SIDE

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)  # (height, width, 3)
GRAY = RGB[..., 0]
FLOATS = RGB.transpose(2, 0, 1) / np.float32(255)  # (3, height, width)


def test_gray_pixels_become_three_equal_channels_from_0_to_1():
    tensor = to_tensor(np.array([[0, 255, 51]], np.uint8))

    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor, [[[0, 1, 0.2]]] * 3, rtol=1e-6)


def test_colors_keep_their_order():
    orange = np.array([[[255, 102, 0]]], np.uint8)

    np.testing.assert_allclose(to_tensor(orange)[:, 0, 0], [1, 0.4, 0], rtol=1e-6)


def test_pillow_images_and_arrays_are_the_same_pixels():
    np.testing.assert_array_equal(to_tensor(Image.fromarray(RGB)), to_tensor(RGB))
    np.testing.assert_array_equal(to_tensor(Image.fromarray(GRAY)), to_tensor(GRAY))


def test_float_images_pass_as_they_are():
    np.testing.assert_array_equal(to_tensor(FLOATS), FLOATS)


def test_what_resampling_leaves_of_white_is_accepted():
    to_tensor(np.full((3, 2, 2), 1 + 1e-6, np.float32))


def test_photos_are_shrunk_before_they_travel():
    tensor = to_tensor(Image.new("RGB", (4 * MAX_SIDE, 2 * MAX_SIDE), (255, 0, 0)))

    assert tensor.shape == (3, MAX_SIDE // 2, MAX_SIDE)
    assert tensor[0].min() == 1
    assert tensor[1:].max() == 0


@pytest.mark.parametrize(
    ("image", "error", "expected"),
    [
        (np.zeros((28, 28)), TypeError, "uint8 from 0 to 255 or float32 from 0 to 1, got float64"),
        (np.zeros((28, 28), np.int64), TypeError, "got int64"),
        (np.zeros((28, 28), bool), TypeError, "got bool"),
        (np.zeros((28, 28, 4), np.uint8), ValueError, r"\(height, width\[, 3\]\), got \(28, 28, 4"),
        (np.zeros((3, 28, 28), np.uint8), ValueError, r"\(height, width\[, 3\]\), got \(3, 28, 28"),
        (np.zeros(28, np.uint8), ValueError, r"\(height, width\[, 3\]\), got \(28,\)"),
        (np.zeros((28, 28), np.float32), ValueError, r"\(3, height, width\), got \(28, 28\)"),
        (np.zeros((28, 28, 3), np.float32), ValueError, r"\(3, height, width\), got \(28, 28, 3"),
        (np.zeros((0, 28), np.uint8), ValueError, r"must have pixels, got shape \(0, 28\)"),
        (255 * FLOATS, ValueError, r"shape \(3, height, width\).* from 0 to 1, got 0 to 59\."),
        ((FLOATS - 0.5) / 0.5, ValueError, "from 0 to 1, got -1 to"),
        (np.full((3, 2, 2), np.nan, np.float32), ValueError, "from 0 to 1, got nan"),
        (np.full((3, 2, 2), np.inf, np.float32), ValueError, "from 0 to 1, got inf"),
        (np.full((3, 2, 2), 1.01, np.float32), ValueError, "from 0 to 1, got 1.01"),
    ],
)
def test_wrong_images_are_told_the_right_shape_and_range(image, error, expected):
    with pytest.raises(error, match=expected):
        to_tensor(image)


@pytest.mark.parametrize(
    "images",
    [
        Image.fromarray(RGB),
        RGB,
        FLOATS,
        [RGB],
        (RGB,),
        iter([RGB]),
        RGB[None],
        FLOATS[None],
        np.array([RGB, RGB])[:1],
    ],
    ids=lambda images: f"{type(images).__name__}{getattr(images, 'shape', '')}",
)
def test_one_image_with_or_without_a_list(images):
    (tensor,) = to_tensors(images)

    np.testing.assert_allclose(tensor, FLOATS, rtol=1e-6)


@pytest.mark.parametrize("image", [GRAY, GRAY[None]], ids=["alone", "as an array of one"])
def test_one_gray_image(image):
    (tensor,) = to_tensors(image)

    np.testing.assert_allclose(tensor, [FLOATS[0]] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("images", "count"),
    [
        (np.zeros((2, 28, 28), np.uint8), 2),
        (np.zeros((28, 28, 28), np.uint8), 28),
        (np.zeros((5, 28, 28, 3), np.uint8), 5),
        (np.zeros((5, 3, 28, 28), np.float32), 5),
        (np.zeros((3, 28, 3), np.uint8), 1),
        ([GRAY, GRAY, GRAY], 3),
        ([GRAY, Image.fromarray(RGB), FLOATS], 3),
    ],
)
def test_arrays_and_lists_are_counted_right(images, count):
    assert len(to_tensors(images)) == count


def test_three_gray_images_could_be_one_in_channels_first_order():
    with pytest.raises(
        ValueError, match=r"\(3, 28, 28\) is one .* or three .*\(height, width, 3\)"
    ):
        to_tensors(np.zeros((3, 28, 28), np.uint8))


def test_paths_are_opened(tmp_path):
    path = tmp_path / "image_without_ending"
    Image.fromarray(RGB).save(path, "PNG")

    for images in (path, str(path), [path]):
        (tensor,) = to_tensors(images)
        np.testing.assert_allclose(tensor, FLOATS, rtol=1e-6)


def test_bytes_are_not_an_image():
    with pytest.raises(TypeError, match="a path, a Pillow image or an array, got bytes"):
        to_tensors(b"boot.png")


@pytest.mark.parametrize(
    "images", [[], np.zeros((0, 28, 28), np.uint8), np.zeros((0, 3, 4, 4), np.float32)]
)
def test_no_images_are_refused(images):
    with pytest.raises(ValueError, match="no images"):
        to_tensors(images)


def test_batches_hold_one_shape_and_at_most_64_images():
    wide, tall = np.zeros((3, 4, 5), np.float32), np.zeros((3, 5, 4), np.float32)

    batches = batches_of_one_shape([wide, tall] + 70 * [wide])

    assert [len(batch) for batch in batches] == [64, 7, 1]
    assert sorted(np.concatenate(batches).tolist()) == list(range(72))
    assert batches[2] == [1]
