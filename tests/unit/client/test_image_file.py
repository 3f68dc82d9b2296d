"""Files of strangers: what they become, and that none of them costs more than it may."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.client.image_file import (
    KEPT_SIDE,
    ImageFileError,
    as_encoder_sees,
    read_image,
    to_query,
    to_rgb,
)
from reverse_image_search.client.tensors import to_tensor
from tests.image_corpus import (
    BLUE,
    EXIF_ORIENTATION,
    GREEN,
    RED,
    WHITE,
    Expected,
    corpus,
    data_of,
    encoded,
    quadrants,
)
from tests.running import REPO_ROOT

MAX_SECONDS = 2
MAX_MEGABYTES = 500

# Decodes each file named on standard input; prints name, CPU seconds, peak memory in MB.
_DECODE_EACH = """
import json, re, sys, time
from pathlib import Path
from reverse_image_search.client.image_file import ImageFileError, read_image

def peak():  # kB; getrusage would give the parent's peak as well
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
for line in sys.stdin:
    data = Path(line.strip()).read_bytes()
    start = time.process_time()
    try:
        outcome = str(read_image(data).pixels.shape)
    except ImageFileError as error:
        outcome = f"ImageFileError: {error}"
    seconds = time.process_time() - start
    megabytes = (peak() - before) / 1024
    print(json.dumps([Path(line.strip()).name, seconds, megabytes, outcome]), flush=True)
"""


def _center_of(photo, quadrant):
    """Colour in the middle of quadrant (row, column) of a photo."""
    height, width = photo.pixels.shape[:2]
    row, column = quadrant
    return photo.pixels[(2 * row + 1) * height // 4, (2 * column + 1) * width // 4]


def test_corpus_is_large_enough():
    assert len(corpus()) >= 100
    assert len({file.name for file in corpus()}) == len(corpus())


def _outcome(data):
    try:
        return read_image(data)
    except ImageFileError as error:
        return error


@pytest.mark.parametrize("file", corpus(), ids=lambda file: file.name)
def test_every_file_becomes_a_picture_or_one_clear_sentence(file):
    outcome = _outcome(file.data)

    if isinstance(outcome, ImageFileError):
        assert file.expected is not Expected.PICTURE, outcome
        message = str(outcome)
        assert message.endswith(".")
        assert "\n" not in message
        assert len(message) < 200
    else:
        assert file.expected is not Expected.ERROR
        height, width, channels = outcome.pixels.shape
        assert channels == 3
        assert outcome.pixels.dtype == np.uint8
        assert 1 <= max(height, width) <= KEPT_SIDE
        tensor = to_tensor(outcome.pixels)  # what the client sends
        assert tensor.shape == (3, height, width)
        assert np.isfinite(tensor).all()


def test_no_file_takes_two_seconds_or_half_a_gigabyte(tmp_path):
    names = []
    for file in corpus():
        (tmp_path / file.name).write_bytes(file.data)
        names.append(str(tmp_path / file.name))
    result = subprocess.run(
        [sys.executable, "-c", _DECODE_EACH],
        cwd=REPO_ROOT, input="\n".join(names), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    figures = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(figures) == len(names)
    slowest = max(figures, key=lambda figure: figure[1])
    print(
        f"\n{len(figures)} files, none crashed; slowest {slowest[0]} {slowest[1]:.2f} s of CPU, "
        f"peak memory {figures[-1][2]:.0f} MB above the start"
    )
    assert slowest[1] < MAX_SECONDS
    assert figures[-1][2] < MAX_MEGABYTES


@pytest.mark.parametrize("name", ["png_RGB.png", "bmp_RGB.bmp", "webp_lossless.webp", "gif.gif"])
def test_quadrants_keep_their_places(name):
    photo = read_image(data_of(name))

    assert photo.size == (64, 48)
    assert photo.notes == ()
    found = [_center_of(photo, q) for q in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert np.abs(np.array(found, int) - [RED, GREEN, BLUE, WHITE]).max() <= 2


@pytest.mark.parametrize(
    ("orientation", "upper_left", "size"),
    [
        (1, RED, (64, 48)),
        (2, GREEN, (64, 48)),  # mirrored
        (3, WHITE, (64, 48)),  # upside down
        (4, BLUE, (64, 48)),
        (5, RED, (48, 64)),
        (6, BLUE, (48, 64)),  # to be turned right
        (7, WHITE, (48, 64)),
        (8, GREEN, (48, 64)),  # to be turned left
    ],
)
def test_exif_orientation_is_applied(orientation, upper_left, size):
    photo = read_image(data_of(f"exif_{orientation}.jpg"))

    assert photo.pixels.shape[:2] == size[::-1]
    assert np.abs(_center_of(photo, (0, 0)).astype(int) - upper_left).max() <= 4
    assert ("EXIF" in " ".join(photo.notes)) == (orientation != 1)


def test_cmyk_becomes_rgb():
    photo = read_image(data_of("jpeg_CMYK.jpg"))

    assert np.abs(_center_of(photo, (0, 0)).astype(int) - RED).max() <= 8


def test_16_bit_is_scaled_not_clipped():
    grey = read_image(data_of("png_16_bit_grey.png")).pixels
    rgb = read_image(data_of("png_16_bit_rgb.png")).pixels

    assert (grey[0, 0] == 0).all()
    assert (grey[-1, -1] == 255).all()
    assert abs(int(grey[24, 0, 0]) - 128) <= 2
    assert rgb[0, 0].tolist() == [255, 128, 0]


def test_transparent_ground_is_what_the_picture_stands_out_from():
    dark = Image.new("RGBA", (40, 40), (250, 250, 250, 0))  # white, but transparent
    dark.paste((20, 20, 20, 255), (10, 10, 30, 30))
    light = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    light.paste((230, 230, 230, 255), (10, 10, 30, 30))

    on_white = read_image(encoded(dark, "PNG"))
    on_black = read_image(encoded(light, "PNG"))

    assert on_white.pixels[0, 0].tolist() == [255, 255, 255]
    assert on_white.pixels[20, 20].tolist() == [20, 20, 20]
    assert on_black.pixels[0, 0].tolist() == [0, 0, 0]
    assert on_black.pixels[20, 20].tolist() == [230, 230, 230]
    assert "ransparent" in on_white.notes[0]


@pytest.mark.parametrize("name", ["gif_animated.gif", "webp_animated.webp", "png_animated.png"])
def test_first_frame_of_an_animation_is_taken(name):
    photo = read_image(data_of(name))

    assert "animated" in photo.notes[0]
    assert np.abs(_center_of(photo, (0, 0)).astype(int) - RED).max() <= 8


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.png", "empty \\(0 bytes\\)"),
        ("text.png", "no PNG, JPEG, WebP, GIF or BMP"),
        ("tiff.tiff", "no PNG, JPEG, WebP, GIF or BMP"),
        ("20000x20000.png", "400 megapixels; at most 25"),
        ("6000x6000.png", "36 megapixels; at most 25"),
        ("21_megabytes.png", "21 MB; at most 20 MB"),
        ("truncated_50.png", "damaged or cut short"),
        ("truncated_50.jpg", "damaged or cut short"),
        ("10000_scans.jpg", "more scans than any camera"),
        ("ends_of_line.bmp", "compressed.*save it as PNG"),
    ],
)
def test_reason_is_named(name, reason):
    with pytest.raises(ImageFileError, match=reason):
        read_image(data_of(name))


def test_client_sees_pillow_images_as_a_person_does():
    """Pillow images that are handed to the client directly, not read from a file here."""
    grey_16 = Image.fromarray(np.full((4, 4), 32_896, np.uint16))  # half of 65535
    turned = quadrants()
    turned.getexif()[EXIF_ORIENTATION] = 6

    assert to_tensor(grey_16)[0, 0, 0] == pytest.approx(128 / 255)
    assert to_tensor(turned).shape == (3, 64, 48)
    assert to_rgb(quadrants()).tobytes() == quadrants().tobytes()


# Made to look like the gallery ------------------------------------------------------------------


def _boot_on(ground, boot):
    """A block of 10 x 20 pixels, off center in a picture of 60 x 40."""
    pixels = np.full((40, 60, 3), ground, np.uint8)
    pixels[5:15, 30:50] = boot
    return pixels


def test_light_ground_is_recognised():
    light = read_image(encoded(Image.fromarray(_boot_on(230, 40)), "PNG"))
    dark = read_image(encoded(Image.fromarray(_boot_on(15, 200)), "PNG"))

    assert light.is_light
    assert not dark.is_light


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


def test_inversion_makes_the_ground_black():
    query = to_query(_boot_on(200, 50), crop=False, invert=True)

    assert query.shape == (60, 60, 3)
    assert query[0, 0].tolist() == [0, 0, 0]
    assert query[15 + 10 - 5, 40].tolist() == [191, 191, 191]  # 255 * (1 - 50 / 200)


def test_picture_without_an_object_stays_whole():
    plain = np.full((30, 30, 3), 77, np.uint8)

    assert (to_query(plain, crop=True, invert=False) == plain).all()
    assert (to_query(plain, crop=True, invert=True) == 0).all()


def test_shown_as_the_encoder_prepares_it():
    """The preview repeats what happens inside the encoder: the two must not drift apart."""
    import torch

    from reverse_image_search.encoders.fashion import IMAGE_SIZE, ImageEncoder

    pixels = np.random.default_rng(3).integers(0, 256, (301, 301, 3), np.uint8)
    pixels[50:250, 100:200] //= 8

    shown = as_encoder_sees(pixels, (IMAGE_SIZE, IMAGE_SIZE))
    with torch.inference_mode():
        prepared = ImageEncoder().prepare(torch.from_numpy(to_tensor(pixels))[None])

    difference = np.abs(shown / 255 - prepared[0, 0].numpy())
    assert difference.max() < 2 / 255
