"""An image file from a stranger, made into pixels that can be searched for.

    photo = read_image(uploaded_bytes)             # or ImageFileError, one clear sentence
    pixels = to_query(photo.pixels, crop=True, invert=photo.is_light)

Whatever the bytes are, `read_image` ends within about a second and a few hundred megabytes: five
formats only, a limit on bytes and pixels that is checked before anything is decoded, one file
decoded at a time. Nothing is written to disk.
"""

from __future__ import annotations

import io
import re
import threading
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

MAX_BYTES = 20 * 2**20  # .streamlit/config.toml has the same limit, in megabytes
MAX_PIXELS = 25_000_000
# Longest side of the pixels that are kept, and sent: an encoder looks at 28 to 224 of them.
KEPT_SIDE = 512

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
EXTENSIONS = ("png", "jpg", "jpeg", "webp", "gif", "bmp")
_FORMAT_NAMES = "PNG, JPEG, WebP, GIF or BMP"

_PLAIN = 32  # of 255: how far a background may stray from the colour of the border
_SPECKS = 0.01  # share of a row or column that may stand out without being part of the object

_EXIF_ORIENTATION = 0x0112

# A progressive JPEG may ask for thousands of passes over the picture; cameras write about ten.
_MAX_JPEG_SCANS = 64
_JPEG_START_OF_SCAN = b"\xff\xda"

# Ten visitors with ten large photos must not need ten times the memory.
_one_at_a_time = threading.Lock()


class ImageFileError(Exception):
    """The file cannot be searched for; the message says why, in one sentence."""


@dataclass(frozen=True)
class Photo:
    """A decoded image file.

    Attributes
    ----------
    pixels : (height, width, 3) uint8 RGB, upright, no side longer than `KEPT_SIDE`
    size : (width, height) of the file, in pixels
    notes : what was done to the picture that its owner may want to know
    """

    pixels: np.ndarray
    size: tuple[int, int]
    notes: tuple[str, ...]

    @property
    def is_light(self) -> bool:
        """Whether the background, judged by the outermost pixels, is light."""
        return bool(_border(self.pixels).mean() > 127)


def read_image(data: bytes) -> Photo:
    """Decode a PNG, JPEG, WebP, GIF or BMP file.

    Of an animation the first frame is taken; EXIF orientation is applied; transparent pixels show
    a black or white background, whichever the picture stands out from; 16 bit are scaled to 8.

    Raises
    ------
    ImageFileError : the file is empty, too large, damaged, or no image of these formats
    """
    if not data:
        raise ImageFileError("The file is empty (0 bytes).")
    if len(data) > MAX_BYTES:
        raise ImageFileError(
            f"The file has {len(data) / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} MB are read."
        )
    with _one_at_a_time:
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check(image, data)
                return _decode(image)
        except ImageFileError:
            raise
        except Image.UnidentifiedImageError:
            raise ImageFileError(f"The file is no {_FORMAT_NAMES} image.") from None
        except Image.DecompressionBombError as error:
            # Pillow's own limit, far above ours; only its message knows the number of pixels.
            raise _too_large(int(re.search(r"\d+", str(error))[0])) from None
        except Exception as error:
            # Decoders meet damaged data with a dozen kinds of exceptions (OSError, SyntaxError,
            # struct.error, zlib.error, IndexError, ...), and each means the same here.
            raise ImageFileError(
                f"The image is damaged or cut short and cannot be read ({error})."
            ) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture as a person sees it: upright, 8 bit RGB, transparency filled.

    Pillow's own ``convert("RGB")`` clips 16 bit to white and shows what lies hidden under
    transparent pixels.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = _to_8_bit(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        pixels = np.asarray(image.resize((1, 1), Image.Resampling.BOX))[0, 0]
        background = "white" if pixels[:3].mean() < 128 else "black"
        canvas = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(canvas, image)
    return image.convert("RGB")


def to_query(pixels: np.ndarray, crop: bool, invert: bool) -> np.ndarray:
    """Make a photo look like the gallery's pictures, as their makers did with theirs.

    Fashion-MNIST's images were photos on white: trimmed to the object, padded to a square and
    inverted (Xiao et al. 2017, "Fashion-MNIST", section 2).

    Parameters
    ----------
    pixels : (height, width, 3) uint8 RGB
    crop : cut off what is as plain as the border
    invert : show a dark object on light ground as a light one on black

    Returns
    -------
    (side, side, 3) uint8 RGB, where side is the longer one of height and width
    """
    ground = np.median(_border(pixels), axis=0)  # (3,)
    if crop:
        pixels = _object_in(pixels, ground)
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), ground, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    if not invert:
        return square
    # The ground becomes black, the darkest white.
    return (255 * np.clip(1 - square / np.maximum(ground, 1), 0, 1)).astype(np.uint8)


def as_encoder_sees(pixels: np.ndarray, size: tuple[int, int], is_grayscale: bool) -> np.ndarray:
    """What is left of an image after resizing and grayscale conversion inside the encoder.

    For display only: the encoder gets the image itself and does this on its own.

    Parameters
    ----------
    pixels : (height, width, 3) uint8 RGB
    size : (height, width) that the encoder works at

    Returns
    -------
    (height, width) or (height, width, 3) uint8
    """
    image = Image.fromarray(pixels).convert("L" if is_grayscale else "RGB")
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))


def _check(image: Image.Image, data: bytes) -> None:
    """Refuse what would take long to decode; `image` is opened, but not decoded yet."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(width * height)
    if image.format in ("JPEG", "MPO") and data.count(_JPEG_START_OF_SCAN) > _MAX_JPEG_SCANS:
        raise ImageFileError("The JPEG has more scans than any camera writes; save it anew.")
    if image.format == "BMP" and image.info.get("compression"):
        # Pillow unpacks these in Python, which takes many seconds for hostile ones.
        raise ImageFileError("The BMP is compressed, which is not read here; save it as PNG.")


def _decode(image: Image.Image) -> Photo:
    size = image.size
    notes = []
    if getattr(image, "is_animated", False):
        notes.append("The image is animated: its first frame is searched for.")
    if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        notes.append("The image was turned upright, as its EXIF orientation says.")
    if image.has_transparency_data:
        notes.append("Transparent parts were filled with black or white.")
    # Modes that would not shrink by averaging. JPEG stays as it is, so that its decoder can skip
    # what would be thrown away.
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode.startswith("I"):
        image = _to_8_bit(image)
    image.thumbnail((KEPT_SIDE, KEPT_SIDE), Image.Resampling.BOX)
    return Photo(np.asarray(to_rgb(image)), size, tuple(notes))


def _too_large(pixels: int) -> ImageFileError:
    return ImageFileError(
        f"The image has {pixels / 1e6:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are read. "
        "Make it smaller and try again."
    )


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16 bit grey (modes I;16 and I) scaled to 8 bit."""
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def _object_in(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """The smallest rectangle of (height, width, 3) that holds all that stands out of `ground`."""
    stands_out = np.abs(pixels - ground).max(axis=2) > _PLAIN
    # A few specks of dust are not an object.
    rows = np.flatnonzero(stands_out.mean(axis=1) > _SPECKS)
    columns = np.flatnonzero(stands_out.mean(axis=0) > _SPECKS)
    if not (len(rows) and len(columns)):
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _border(pixels: np.ndarray) -> np.ndarray:
    """The outermost pixels of (height, width, 3), as (n, 3)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
