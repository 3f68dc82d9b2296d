"""Photos made to look like the gallery's images."""

import io

import numpy as np
from PIL import Image

from reverse_image_search.app.query_image import as_encoder_sees, has_light_background, to_query
from reverse_image_search.client.tensors import to_tensor
from reverse_image_search.gallery import make_thumbnail
from reverse_image_search.image_file import read_image
from tests.image_corpus import encoded, quadrants


def _boot_on(background, boot):
    """A block of 10 x 20 pixels, off center in an image of 60 x 40."""
    pixels = np.full((40, 60, 3), background, np.uint8)
    pixels[5:15, 30:50] = boot
    return pixels


def test_light_background_is_recognized():
    assert has_light_background(_boot_on(230, 40))
    assert not has_light_background(_boot_on(15, 200))


def test_cropped_to_the_object_and_padded_to_a_square():
    query = to_query(_boot_on(15, 200), crop=True, invert=False)

    assert query.shape == (20, 20, 3)
    assert (query[5:15] == 200).all()
    assert (query[:5] == 15).all()
    assert (query[15:] == 15).all()


def test_dust_is_not_part_of_the_object():
    pixels = np.full((400, 600, 3), 240, np.uint8)
    pixels[100:300, 200:400] = 40
    pixels[2, 2] = pixels[390, 590] = 0

    assert to_query(pixels, crop=True, invert=False).shape == (200, 200, 3)


def test_inversion_makes_the_background_black():
    query = to_query(_boot_on(200, 50), crop=False, invert=True)

    assert query.shape == (60, 60, 3)
    assert query[0, 0].tolist() == [0, 0, 0]
    assert query[15 + 10 - 5, 40].tolist() == [191, 191, 191]  # 255 * (1 - 50 / 200)


def test_image_without_an_object_stays_whole():
    plain = np.full((30, 30, 3), 77, np.uint8)

    assert (to_query(plain, crop=True, invert=False) == plain).all()
    assert (to_query(plain, crop=True, invert=True) == 0).all()


def test_shown_as_the_encoder_prepares_it():
    """The preview repeats what happens inside the encoder: the two must not drift apart."""
    import torch

    from reverse_image_search.encoders.fashion import IMAGE_SIZE, FashionEncoder

    pixels = np.random.default_rng(3).integers(0, 256, (301, 301, 3), np.uint8)
    pixels[50:250, 100:200] //= 8

    shown = as_encoder_sees(pixels, (IMAGE_SIZE, IMAGE_SIZE))
    with torch.inference_mode():
        prepared = FashionEncoder().preprocess(torch.from_numpy(to_tensor(pixels))[None])

    difference = np.abs(shown / 255 - prepared[0, 0].numpy())
    assert difference.max() < 2 / 255


def test_preview_in_color_keeps_the_colors():
    """For encoders that work on RGB of another shape."""
    pixels = np.zeros((50, 100, 3), np.uint8)
    pixels[:, 50:] = (200, 100, 50)

    shown = as_encoder_sees(pixels, (8, 4), grayscale=False)

    assert shown.shape == (8, 4, 3)
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert shown[7, 3].tolist() == [200, 100, 50]


def test_what_the_page_shows_carries_no_metadata():
    exif = Image.Exif()
    exif[0x010F] = "SECRET CAMERA"
    data = encoded(quadrants(), "JPEG", exif=exif, comment=b"SECRET PLACE")

    shown = make_thumbnail(read_image(data).pixels)

    assert b"SECRET" in data
    assert b"SECRET" not in shown
    assert "exif" not in Image.open(io.BytesIO(shown)).info
