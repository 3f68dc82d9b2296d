"""Untrusted image files: what they become, and that none exceeds the limits."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from reverse_image_search.client.tensors import to_tensor
from reverse_image_search.first_frame import exif_orientation
from reverse_image_search.image_file import MAX_SIDE, ImageFileError, read_image, to_rgb
from tests.image_corpus import (
    BLUE,
    EXIF_ORIENTATION,
    GREEN,
    RED,
    WHITE,
    Expected,
    corpus,
    damaged_metadata,
    data_of,
    encoded,
    exif_of,
    quadrants,
    turned,
)
from tests.running import REPO_ROOT

MAX_SECONDS = 2
MAX_MEGABYTES = 500

# Decodes each file named on standard input; prints name, CPU seconds, peak memory in MB.
_DECODE_EACH = """
import json, re, sys, time
from pathlib import Path
from reverse_image_search.image_file import ImageFileError, read_image

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


def _center_of(pixels, quadrant):
    """Color in the middle of quadrant (row, column) of (height, width, 3)."""
    height, width = pixels.shape[:2]
    row, column = quadrant
    return pixels[(2 * row + 1) * height // 4, (2 * column + 1) * width // 4].astype(int)


def _quadrants_of(pixels):
    """Colors of upper left, upper right, lower left, lower right."""
    return np.array([_center_of(pixels, q) for q in ((0, 0), (0, 1), (1, 0), (1, 1))])


def _outcome(data):
    try:
        return read_image(data)
    except ImageFileError as error:
        return error


def _decode_in_a_process(paths):
    """Name, CPU seconds, peak of memory in MB so far, and outcome of each file."""
    result = subprocess.run(
        [sys.executable, "-c", _DECODE_EACH],
        cwd=REPO_ROOT, input="\n".join(map(str, paths)), capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_corpus_is_large_enough():
    assert len(corpus()) >= 200
    assert len({file.name for file in corpus()}) == len(corpus())


@pytest.mark.parametrize("file", corpus(), ids=lambda file: file.name)
def test_every_file_becomes_an_image_or_one_clear_sentence(file):
    outcome = _outcome(file.data)

    if isinstance(outcome, ImageFileError):
        assert file.expected is not Expected.IMAGE, outcome
        message = str(outcome)
        assert message.endswith(".")
        assert "\n" not in message
        assert len(message) < 200
    else:
        assert file.expected is not Expected.ERROR
        height, width, channels = outcome.pixels.shape
        assert channels == 3
        assert outcome.pixels.dtype == np.uint8
        assert 1 <= max(height, width) <= MAX_SIDE


def _opened_by_pillow_alone(data):
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception:
        return None  # metadata that Pillow trips over
    return image


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own reading of damaged metadata
def test_client_sends_the_pixels_of_the_page():
    """For each file of the corpus, opened with Pillow as users of the client do."""
    compared = 0
    for file in corpus():
        # Pillow reads a comment of 18 MB in hours.
        if file.expected is Expected.ERROR or file.name == "18_MB_comment.gif":
            continue
        outcome, image = _outcome(file.data), _opened_by_pillow_alone(file.data)
        if isinstance(outcome, ImageFileError) or image is None:
            continue
        np.testing.assert_array_equal(
            to_tensor(image), to_tensor(outcome.pixels), err_msg=file.name
        )
        compared += 1
    assert compared >= 150


def test_no_file_takes_two_seconds_or_half_a_gigabyte(tmp_path):
    paths = []
    for file in corpus():
        paths.append(tmp_path / file.name)
        paths[-1].write_bytes(file.data)
    figures = _decode_in_a_process(paths)
    assert len(figures) == len(paths)
    slowest = max(figures, key=lambda figure: figure[1])
    print(
        f"\n{len(figures)} files, none crashed; slowest {slowest[0]} {slowest[1]:.2f} s of CPU, "
        f"peak memory {figures[-1][2]:.0f} MB above the start"
    )
    assert slowest[1] < MAX_SECONDS
    assert figures[-1][2] < MAX_MEGABYTES


@pytest.mark.parametrize(
    "name", ["png_RGB.png", "bmp_RGB.bmp", "webp_lossless.webp", "gif.gif", "avif.avif"]
)
def test_quadrants_keep_their_places(name):
    photo = read_image(data_of(name))

    assert photo.size == (64, 48)
    assert photo.notes == ()
    assert np.abs(_quadrants_of(photo.pixels) - [RED, GREEN, BLUE, WHITE]).max() <= 4


@pytest.mark.parametrize("name", damaged_metadata())
def test_damage_beside_the_pixels_changes_nothing(name):
    photo = read_image(damaged_metadata()[name])

    assert photo.size == (64, 48)
    assert photo.pixels.shape == (48, 64, 3)
    assert not any("EXIF" in note or "ransparent" in note for note in photo.notes)
    assert np.abs(_quadrants_of(photo.pixels) - [RED, GREEN, BLUE, WHITE]).max() <= 8


@pytest.mark.parametrize("name", turned())
def test_exif_orientation_is_applied_in_every_mode(name):
    """Turned right, the lower left quadrant is the upper left one."""
    photo = read_image(turned()[name])

    assert photo.pixels.shape == (64, 48, 3)
    assert any("EXIF" in note for note in photo.notes)
    blocks = photo.pixels.reshape(2, 32, 2, 24, 3)[:, 8:24, :, 6:18]  # centers of the quadrants
    gray = blocks.mean(axis=(1, 3)) @ [0.299, 0.587, 0.114]
    assert gray.ravel().tolist() == pytest.approx([43, 80, 255, 114], abs=12)  # one bit is dithered


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
def test_every_exif_orientation_is_applied(orientation, upper_left, size):
    photo = read_image(data_of(f"exif_{orientation}.jpg"))

    assert photo.pixels.shape[:2] == size[::-1]
    assert np.abs(_center_of(photo.pixels, (0, 0)) - upper_left).max() <= 4
    assert ("EXIF" in " ".join(photo.notes)) == (orientation != 1)


@pytest.mark.parametrize(
    ("exif", "expected"),
    [
        (exif_of(6), 6),
        (exif_of(6)[6:], 6),  # as PNG and WebP store it
        (exif_of(0), 1),
        (exif_of(9), 1),
        (exif_of(6)[:-12], 1),  # ends before the value
        (b"", 1),
        (b"Exif\0\0II*\0\xff\xff\xff\xff", 1),
    ],
)
def test_orientation_of_an_exif_block(exif, expected):
    assert exif_orientation(exif) == expected


def test_cmyk_becomes_rgb():
    photo = read_image(data_of("jpeg_CMYK.jpg"))

    assert np.abs(_center_of(photo.pixels, (0, 0)) - RED).max() <= 8


def test_16_bit_is_scaled_not_clipped():
    gray = read_image(data_of("png_16_bit_gray.png")).pixels
    rgb = read_image(data_of("png_16_bit_rgb.png")).pixels

    assert (gray[0, 0] == 0).all()
    assert (gray[-1, -1] == 255).all()
    assert abs(int(gray[24, 0, 0]) - 128) <= 2
    assert rgb[0, 0].tolist() == [255, 128, 0]


def test_transparent_background_is_what_the_image_stands_out_from():
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


def test_transparent_16_bit_gray():
    values = np.full((4, 4), 40_000, np.uint16)
    values[:2] = 1000  # transparent: filled with black, which 40,000 of 65,535 stands out from
    photo = read_image(encoded(Image.fromarray(values), "PNG", transparency=1000))

    assert photo.pixels[0, 0].tolist() == [0, 0, 0]
    assert photo.pixels[3, 3].tolist() == [155, 155, 155]  # 40,000 / 257


def test_opaque_alpha_channel_is_not_called_transparent():
    assert read_image(encoded(quadrants().convert("RGBA"), "PNG")).notes == ()


@pytest.mark.parametrize(
    "name", ["gif_animated.gif", "webp_animated.webp", "png_animated.png", "avif_animated.avif"]
)
def test_first_frame_of_an_animation_is_used(name):
    photo = read_image(data_of(name))

    assert "animated" in photo.notes[0]
    assert np.abs(_center_of(photo.pixels, (0, 0)) - RED).max() <= 8


def test_jpeg_with_a_preview_is_not_animated():
    assert read_image(data_of("jpeg_two_images.jpg")).notes == ()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.png", "empty \\(0 bytes\\)"),
        ("text.png", "not a PNG, JPEG, WebP, GIF, BMP or AVIF image"),
        ("tiff.tiff", "not a PNG, JPEG, WebP, GIF, BMP or AVIF image"),
        ("heic.jpg", "HEIC is not supported. Save the image as JPEG or PNG"),
        ("jpeg_xl.jpg", "JPEG XL is not supported. Save the image as JPEG or PNG"),
        ("jpeg_xl_container.jpg", "JPEG XL is not supported"),
        ("20000x20000.png", "400 megapixels; the limit is 25"),
        ("6000x6000.png", "36 megapixels; the limit is 25"),
        ("6000x6000.avif", "36 megapixels; the limit is 25"),
        ("21_megabytes.png", "21 MB; the limit is 20 MB"),
        ("truncated_50.png", "damaged or cut short"),
        ("truncated_50.jpg", "damaged or cut short"),
        ("10000_scans.jpg", "more than 64 scans"),
        ("5_million_segments.jpg", "too many parts"),
        ("ends_of_line.bmp", "Compressed BMP.*Save the image as PNG"),
    ],
)
def test_reason_is_named(name, reason):
    with pytest.raises(ImageFileError, match=reason):
        read_image(data_of(name))


def test_avif_that_declares_less_than_it_holds_is_decoded_within_limits(tmp_path):
    """A frame of 64 megapixels in a file that says 64 x 48: no more memory in this process."""
    data = encoded(Image.new("L", (8000, 8000), 77), "AVIF", speed=10, quality=10)
    place = data.index(b"ispe") + 8
    bomb = tmp_path / "bomb.avif"
    bomb.write_bytes(data[:place] + (64).to_bytes(4) + (48).to_bytes(4) + data[place + 8 :])

    ((_, _, megabytes, outcome),) = _decode_in_a_process([bomb])
    assert megabytes < 50, outcome


def test_avif_without_support_in_pillow(monkeypatch):
    monkeypatch.setattr("PIL.features.check", lambda _: False)

    with pytest.raises(ImageFileError, match="AVIF is not supported by the installed Pillow"):
        read_image(data_of("avif.avif"))


def test_client_sees_pillow_images_as_a_person_does():
    """Pillow images that are handed to the client directly, not read from a file here."""
    gray_16 = Image.fromarray(np.full((4, 4), 32_896, np.uint16))  # half of 65535
    turned_in_memory = quadrants()
    turned_in_memory.getexif()[EXIF_ORIENTATION] = 6

    assert to_tensor(gray_16)[0, 0, 0] == pytest.approx(128 / 255)
    assert to_tensor(turned_in_memory).shape == (3, 64, 48)
    assert to_rgb(quadrants()).tobytes() == quadrants().tobytes()


def test_image_of_the_caller_stays_as_it_is(tmp_path):
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded(quadrants(2000, 1500), "JPEG", exif=exif_of(6)))
    with Image.open(path) as image:
        assert to_rgb(image).size == (384, 512)
        assert image.size == (2000, 1500)
        assert image.getexif()[EXIF_ORIENTATION] == 6


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_without_a_known_range_are_refused(mode):
    with pytest.raises(ValueError, match=f"mode {mode} .*convert it to mode L or RGB"):
        to_rgb(Image.new(mode, (28, 28)))
