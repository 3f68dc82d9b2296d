"""Decode untrusted image files.

    photo = read_image(uploaded_bytes)  # or ImageFileError, one clear sentence
    client.search([photo.pixels])

Whatever the bytes are, `read_image` returns within about a second and a few hundred megabytes: a
fixed list of formats, limits on bytes and pixels that are checked before anything is decoded, one
file decoded at a time. Nothing is written to disk.

The page and the Python client share `to_rgb`, so both send the same pixels for an image.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from reverse_image_search.first_frame import (
    FirstFrame,
    ImageFileError,
    UnknownFormatError,
    exif_orientation,
    first_frame,
    recognize,
)


class Limits(NamedTuple):
    """What is decoded at all."""

    max_bytes: int
    max_pixels: int
    is_isolated: bool = False  # whether this process may die of an image


MAX_BYTES = 20 * 2**20  # .streamlit/config.toml has the same limit, in megabytes
UPLOADS = Limits(MAX_BYTES, 25_000_000)
# Files of one's own, in a process whose memory is limited (image_reader.py): in further formats.
OWN_FILES = Limits(512 * 2**20, 150_000_000, is_isolated=True)
# Pillow has Ghostscript run the program that an EPS file is.
_UNSAFE_FORMATS = {"EPS"}
# Longest side in pixels that is sent to the server: encoders look at 28 to 224 pixels, and a
# 12-megapixel photo would travel as 144 MB of FP32.
MAX_SIDE = 512

_DAMAGED = "The image is damaged or cut short, or its variant of the format is not supported."
_EXIF_ORIENTATION = 0x0112

# An AVIF file of 2 kB can hold a frame of 268 megapixels and declare 64 x 48. Pillow cannot limit
# that, so a process with a memory limit of its own decodes it.
_AVIF_TO_PNG = """
import resource, sys
from PIL import Image
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
with Image.open(sys.stdin.buffer, formats=["AVIF"]) as image:
    image.save(sys.stdout.buffer, "PNG", compress_level=0, exif=image.info.get("exif", b""))
"""
_AVIF_TIMEOUT = 10.0  # seconds

# Ten visitors with ten large photos must not need ten times the memory.
_one_at_a_time = threading.Lock()


class Photo(NamedTuple):
    """A decoded image file."""

    pixels: np.ndarray  # (height, width, 3) uint8 RGB, upright
    size: tuple[int, int]  # (width, height) of the file, in pixels
    notes: tuple[str, ...]  # what was done to the image that its owner may want to know


def read_image(data: bytes, longest_side: int = MAX_SIDE, limits: Limits = UPLOADS) -> Photo:
    """Decode a PNG, JPEG, WebP, GIF, BMP or AVIF file; with `OWN_FILES`, any that Pillow reads.

    No side of the pixels is longer than `longest_side`.

    Of an animation the first frame is taken; the rest is what `to_rgb` does.

    Raises
    ------
    ImageFileError : the file is empty, too large, damaged, or of another format
    """
    if not data:
        raise ImageFileError("The file is empty (0 bytes).")
    check_size(len(data), limits)
    with _one_at_a_time:
        try:
            return _decode(data, longest_side, limits)
        except ImageFileError:
            raise
        except UnidentifiedImageError:
            if recognize(data):
                raise ImageFileError(_DAMAGED) from None
            raise ImageFileError("The file is not an image of a supported format.") from None
        except MemoryError:
            raise ImageFileError("The image takes too much memory.") from None
        except Image.DecompressionBombError as error:
            # Pillow has a limit as well, far above ours; only its message knows the pixels.
            pixels = int(re.findall(r"\d+", str(error))[0])
            raise ImageFileError(
                f"The image has {pixels / 1e6:.0f} megapixels; the limit is "
                f"{limits.max_pixels / 1e6:.0f}. Make it smaller and try again."
            ) from None
        except Exception as error:
            # Decoders meet damaged data with a dozen kinds of exceptions (OSError, SyntaxError,
            # struct.error, zlib.error, IndexError, ...), and each means the same here.
            raise ImageFileError(_DAMAGED) from error


def check_size(size: int, limits: Limits = UPLOADS) -> None:
    """Raise an `ImageFileError` if a file of `size` bytes is too large."""
    if size > limits.max_bytes:
        raise ImageFileError(
            f"The file has {size / 2**20:.0f} MB; the limit is {limits.max_bytes // 2**20} MB."
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB of an image as browsers show it, no side longer than `MAX_SIDE`.

    The EXIF orientation is applied, 16-bit gray is scaled to 8 bits, and transparent pixels show
    black or white, whichever the image stands out from. (Pillow's own ``convert("RGB")`` clips 16
    bits to white and shows the colors that are hidden under transparent pixels.)

    Raises
    ------
    ValueError : the image's mode has no known range or color space (I, F, LAB)
    """
    if image.mode in ("I", "F", "LAB"):
        raise ValueError(
            f"a Pillow image of mode {image.mode} has no fixed range of values; "
            "convert it to mode L or RGB first"
        )
    return _opaque(_upright(image))


def _decode(data: bytes, longest_side: int, limits: Limits) -> Photo:
    formats, frame = _first_frame(data, limits)
    notes = []
    image: Image.Image
    with Image.open(io.BytesIO(frame.data), formats=formats) as image:
        file_format, size = image.format, image.size
        if size[0] * size[1] > limits.max_pixels:
            raise Image.DecompressionBombError(f"{size[0] * size[1]} pixels")
        if file_format == "BMP" and image.info.get("compression") in (1, 2):
            # Pillow decodes run lengths in Python, which takes many seconds for hostile files.
            raise ImageFileError("Compressed BMP is not supported. Save the image as PNG.")
        if file_format == "AVIF" and not limits.is_isolated:
            png = subprocess.run(
                [sys.executable, "-I", "-c", _AVIF_TO_PNG],
                input=frame.data, capture_output=True, check=True, timeout=_AVIF_TIMEOUT,
            ).stdout  # fmt: skip
            image = Image.open(io.BytesIO(png), formats=["PNG"])
        elif frame.exif:
            image.info["exif"] = frame.exif
        if frame.animated:
            notes.append("The image is animated: only its first frame is used.")
        if image.mode in ("I", "F", "LAB"):
            image = _with_known_range(image)
        if _orientation(image) != 1:
            notes.append("The image was turned upright, as its EXIF orientation says.")
        upright = _upright(image, longest_side)
    if upright.mode == "RGBA" and upright.getchannel("A").getextrema() != (255, 255):
        notes.append("Transparent parts were filled with black or white.")
    return Photo(np.asarray(_opaque(upright)), size, tuple(notes))


def _first_frame(data: bytes, limits: Limits) -> tuple[list[str], FirstFrame]:
    """Formats to try, and the reduced file."""
    try:
        name, frame = first_frame(data)
    except UnknownFormatError:
        if not limits.is_isolated:
            raise
        Image.init()
        others = set(Image.OPEN) - {"PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"} - _UNSAFE_FORMATS
        return sorted(others), FirstFrame(data)
    return [name], frame


def _with_known_range(image: Image.Image) -> Image.Image:
    """8-bit form of integers and floats of 32 bits, stretched to their range, and of LAB."""
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        assert converted is not None  # it is not done in place
        return converted
    values = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
    low, high = values.min(), values.max()
    if image.mode == "I" and low >= 0 and high < 2**16:  # 16-bit PGM, for one
        low, high = np.float32(0), np.float32(2**16 - 1)
    return Image.fromarray(((values - low) / max(high - low, 1e-30) * 255).astype(np.uint8))


def _upright(image: Image.Image, longest_side: int = MAX_SIDE) -> Image.Image:
    """Apply the EXIF orientation and shrink to `longest_side`; with transparency, mode RGBA."""
    orientation = _orientation(image)  # before conversions, which forget it
    image = _with_plain_values(image)
    scale = longest_side / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    image.info = {}  # metadata, which may be damaged
    image.getexif()[_EXIF_ORIENTATION] = orientation
    return ImageOps.exif_transpose(image)


def _orientation(image: Image.Image) -> int:
    image.load()  # the EXIF chunk of a PNG file may follow the pixels
    if image.format is None and "exif" not in image.info:  # made in memory
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    return exif_orientation(image.info.get("exif", b""))


def _with_plain_values(image: Image.Image) -> Image.Image:
    """8-bit values that can be averaged, with transparency, if any, as mode RGBA."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        gray = Image.fromarray((values // 257).astype(np.uint8))
        if (transparent := image.info.get("transparency")) is not None:
            gray.putalpha(Image.fromarray(values != transparent).convert("L"))
        image = gray
    # Programs that do not know of transparency leave it at 0 in a BMP file.
    if image.mode == "RGBA" and image.format == "BMP" and not image.getchannel("A").getbbox():
        return image.convert("RGB")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert({"P": "RGB", "1": "L"}.get(image.mode, image.mode))


def _opaque(image: Image.Image) -> Image.Image:
    """RGB, composited over black or white, whichever the image stands out from."""
    if image.mode == "RGBA":
        mean = np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0, :3].mean()
        canvas = Image.new("RGBA", image.size, "white" if mean < 128 else "black")
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")
