"""Image files that a stranger may send: sound, odd, damaged, hostile, and no images at all."""

from __future__ import annotations

import io
import struct
import zlib
from enum import Enum, auto
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (220, 20, 20), (20, 180, 20), (20, 20, 220), (255, 255, 255)
EXIF_ORIENTATION = 0x0112


class Expected(Enum):
    """What must come of a file."""

    PICTURE = auto()
    ERROR = auto()
    EITHER = auto()  # damage that some decoders bridge


class ImageFile(NamedTuple):
    """One file of the corpus."""

    name: str
    data: bytes
    expected: Expected


def quadrants(width: int = 64, height: int = 48) -> Image.Image:
    """Red and green above blue and white."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return Image.fromarray(pixels)


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    """`image` as a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


@cache
def corpus() -> list[ImageFile]:
    """All files, always the same ones."""
    return [
        ImageFile(name, data, expected)
        for group, expected in _GROUPS.items()
        for name, data in group().items()
    ]


def data_of(name: str) -> bytes:
    """One file of the corpus, without making all the others."""
    return next(group()[name] for group in _GROUPS if name in group())


@cache
def _modes() -> dict[str, bytes]:
    rgb = quadrants()
    alpha = rgb.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(rgb.size))
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    grey_16 = Image.fromarray(np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64))
    files = {
        f"png_{mode}.png": encoded(rgb.convert(mode), "PNG")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
    }
    files |= {
        "png_alpha.png": encoded(alpha, "PNG"),
        "png_16_bit_grey.png": encoded(grey_16, "PNG"),
        "png_16_bit_rgb.png": _png_16_bit_rgb(),
        "png_transparent_palette.png": encoded(palette, "PNG", transparency=0),
        "png_transparent_colour.png": encoded(rgb, "PNG", transparency=RED),
        "png_transparent_grey.png": encoded(rgb.convert("L"), "PNG", transparency=255),
        "png_all_transparent.png": encoded(Image.new("RGBA", (20, 20), (0, 0, 0, 0)), "PNG"),
        "png_animated.png": encoded(rgb, "PNG", save_all=True, append_images=[palette, alpha]),
    }
    files |= {
        f"jpeg_{mode}.jpg": encoded(rgb.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")
    }
    files |= {
        "jpeg_progressive.jpg": encoded(rgb, "JPEG", progressive=True),
        "jpeg_worst.jpg": encoded(rgb, "JPEG", quality=1),
        "jpeg_best.jpg": encoded(rgb, "JPEG", quality=100, subsampling=0),
        "jpeg_two_pictures.jpg": encoded(rgb, "MPO", save_all=True, append_images=[rgb]),
        "webp_lossy.webp": encoded(rgb, "WEBP"),
        "webp_lossless.webp": encoded(rgb, "WEBP", lossless=True),
        "webp_alpha.webp": encoded(alpha, "WEBP"),
        "webp_animated.webp": encoded(rgb, "WEBP", save_all=True, append_images=[alpha, rgb]),
        "gif.gif": encoded(rgb, "GIF"),
        "gif_transparent.gif": encoded(palette, "GIF", transparency=0),
        "gif_animated.gif": encoded(rgb, "GIF", save_all=True, append_images=[palette, alpha]),
    }
    files |= {
        f"bmp_{mode}.bmp": encoded(rgb.convert(mode), "BMP")
        for mode in ("1", "L", "P", "RGB", "RGBA")
    }
    return files


@cache
def _orientations() -> dict[str, bytes]:
    files = {}
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        files[f"exif_{orientation}.jpg"] = encoded(
            quadrants(), "JPEG", exif=exif, quality=95, subsampling=0
        )
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 99
    files["exif_nonsense.jpg"] = encoded(quadrants(), "JPEG", exif=exif)
    return files


@cache
def _sizes() -> dict[str, bytes]:
    formats = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
    files = {
        f"{width}x{height}.{extension}": encoded(quadrants(width, height), name)
        for name, extension in formats.items()
        for width, height in ((1, 1), (2, 3), (28, 28))
    }
    files |= {
        "1x9000.png": encoded(Image.new("RGB", (1, 9000), RED), "PNG"),
        "9000x1.jpg": encoded(Image.new("RGB", (9000, 1), RED), "JPEG"),
    }
    return files


@cache
def _large() -> dict[str, bytes]:
    """25 megapixels: as much as is read."""
    large = quadrants(5000, 5000)
    return {
        "large.png": encoded(large, "PNG", compress_level=1),
        "large_alpha.png": encoded(large.convert("RGBA"), "PNG", compress_level=1),
        "large_16_bit.png": encoded(
            Image.fromarray(np.full((5000, 5000), 40_000, np.uint16)), "PNG", compress_level=1
        ),
        "large.jpg": encoded(large, "JPEG"),
        "large_progressive.jpg": encoded(large, "JPEG", progressive=True),
        "large_cmyk.jpg": encoded(large.convert("CMYK"), "JPEG"),
        "large.gif": encoded(large, "GIF"),
        "large.bmp": encoded(quadrants(4400, 4400).convert("L"), "BMP"),
        "large.webp": encoded(large, "WEBP", quality=10, method=0),
    }


@cache
def _polyglots() -> dict[str, bytes]:
    png, jpeg = encoded(quadrants(), "PNG"), encoded(quadrants(), "JPEG")
    archive = b"PK\x03\x04" + bytes(26) + b"evil.sh" + b"PK\x05\x06" + bytes(18)
    script = b"<script>alert(1)</script><?php system($_GET['c']); ?>"
    return {
        "png_and_zip.png": png + archive,
        "png_and_script.png": png + script,
        "jpeg_and_zip.jpg": jpeg + archive,
        "jpeg_with_script_comment.jpg": encoded(quadrants(), "JPEG", comment=script),
        "gif_and_javascript.gif": encoded(quadrants(), "GIF", comment=b"*/=alert(1);/*"),
        "png_with_script_text.png": png[:33] + _png_chunk(b"tEXt", b"Title\0" + script) + png[33:],
        "jpeg_called_png.png": jpeg,
        "png_called_gif.gif": png,
    }


@cache
def _foreign() -> dict[str, bytes]:
    image, random = quadrants(), np.random.default_rng(0)
    files = {
        f"{name.lower()}.{name.lower()}": encoded(image, name)
        for name in ("TIFF", "ICO", "PPM", "TGA", "PCX", "JPEG2000", "PDF", "EPS", "ICNS")
    }
    files |= {
        "empty.png": b"",
        "one_byte.png": b"\x89",
        "text.png": b"This is no image.\n",
        "page.jpg": b"<!doctype html><title>x</title><img src=x onerror=alert(1)>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "billion_laughs.png": b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><x>&b;</x>',
        "archive.png": b"PK\x05\x06" + bytes(18),
        "pickle.png": b"\x80\x04\x95\x1a\x00\x00\x00cos\nsystem\n(S'true'\ntR.",
        "program.png": b"\x7fELF\x02\x01\x01" + bytes(200),
        "sound.gif": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40),
        "photoshop.png": b"8BPS\x00\x01" + bytes(60),
        "random.jpg": random.integers(0, 256, 5000, np.uint8).tobytes(),
        "zeros.png": bytes(5000),
        "signature_only.png": b"\x89PNG\r\n\x1a\n",
        "signature_and_noise.png": b"\x89PNG\r\n\x1a\n"
        + random.integers(0, 256, 5000, np.uint8).tobytes(),
        "jpeg_start_only.jpg": b"\xff\xd8\xff",
        "gif_start_only.gif": b"GIF89a",
        "webp_start_only.webp": b"RIFF\x00\x00\x00\x00WEBP",
        "pdf_before_png.png": b"%PDF-1.7\n" + encoded(image, "PNG"),
        "zip_before_png.png": b"PK\x03\x04" + encoded(image, "PNG"),
    }
    return files


@cache
def _too_large() -> dict[str, bytes]:
    """Small files of huge pictures."""
    black = Image.new("1", (20_000, 20_000))
    gif, bmp = bytearray(encoded(quadrants(), "GIF")), bytearray(encoded(quadrants(), "BMP"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    jpeg = bytearray(encoded(quadrants().convert("L"), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    return {
        "20000x20000.png": encoded(black, "PNG"),
        "6000x6000.png": encoded(black.crop((0, 0, 6000, 6000)), "PNG"),
        "9000x9000.jpg": encoded(Image.new("L", (9000, 9000)), "JPEG"),
        "65535x65535.gif": bytes(gif),
        "60000x60000.bmp": bytes(bmp),
        "60000x60000.jpg": bytes(jpeg),
        "2147483647x2147483647.png": _png(2**31 - 1, 2**31 - 1, b""),
        "16384x16384.webp": _webp_header(16_384, 16_384),
        "12000x12000.webp": _webp_header(12_000, 12_000),
        "21_megabytes.png": encoded(quadrants(), "PNG") + bytes(21 * 2**20),
    }


@cache
def _hostile() -> dict[str, bytes]:
    progressive = encoded(quadrants(2000, 2000), "JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    compressed_bmp = bytearray(encoded(quadrants(4000, 4000).convert("P"), "BMP")[:2000])
    compressed_bmp[30:34] = struct.pack("<I", 1)  # 8 bit run lengths
    return {
        "10000_scans.jpg": progressive[:-2] + 10_000 * last_scan + b"\xff\xd9",
        "ends_of_line.bmp": bytes(compressed_bmp) + bytes(10 * 2**20),
        "0x0.png": _png(0, 0, b""),
        "0x10.png": _png(0, 10, b""),
        "no_pixels.png": _png(100, 100, b""),
    }


@cache
def _truncated() -> dict[str, bytes]:
    formats = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    return {
        f"truncated_{percent}.{extension}": data[: len(data) * percent // 100]
        for name, extension in formats.items()
        for data in [encoded(noise, name)]
        for percent in (5, 25, 50, 75, 99)
    }


@cache
def _flipped() -> dict[str, bytes]:
    formats = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
    random = np.random.default_rng(2)
    files = {}
    for name, extension in formats.items():
        for attempt in range(8):
            data = np.frombuffer(encoded(quadrants(), name), np.uint8).copy()
            places = random.integers(0, len(data), 1 + attempt)
            data[places] ^= random.integers(1, 256, len(places), np.uint8)
            files[f"flipped_{attempt}.{extension}"] = data.tobytes()
    return files


@cache
def _bloated() -> dict[str, bytes]:
    """Much more inside than there should be."""
    png = encoded(quadrants(), "PNG")
    zeros = zlib.compress(bytes(200 * 2**20), 9)  # 200 MB in 200 kB
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    frames = [Image.new("P", (8, 8), i % 256) for i in range(2000)]
    return {
        "compressed_text.png": png[:33] + _png_chunk(b"zTXt", b"T\0\0" + zeros) + png[33:],
        "compressed_profile.png": png[:33] + _png_chunk(b"iCCP", b"P\0\0" + zeros) + png[33:],
        "too_many_pixels.png": _png(64, 64, zeros),
        "5000_texts.png": png[:33] + 5000 * _png_chunk(b"tEXt", b"T\0" + bytes(100)) + png[33:],
        "long_exif.jpg": encoded(quadrants(), "JPEG", exif=exif),
        "2000_frames.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }


# What takes long to make comes last, so that `data_of` seldom makes it.
_GROUPS = {
    _modes: Expected.PICTURE,
    _orientations: Expected.PICTURE,
    _sizes: Expected.PICTURE,
    _polyglots: Expected.PICTURE,
    _foreign: Expected.ERROR,
    _truncated: Expected.EITHER,
    _flipped: Expected.EITHER,
    _hostile: Expected.ERROR,
    _bloated: Expected.EITHER,
    _too_large: Expected.ERROR,
    _large: Expected.PICTURE,
}


def _png(width: int, height: int, compressed_rows: bytes) -> bytes:
    """An 8 bit grey PNG of the size it says, with whatever rows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", compressed_rows)
        + _png_chunk(b"IEND", b"")
    )


def _png_16_bit_rgb() -> bytes:
    """64 x 48 pixels of one colour, red 65535, green 32768, blue 0."""
    row = b"\0" + 64 * struct.pack(">HHH", 65_535, 32_768, 0)
    header = struct.pack(">IIBBBBB", 64, 48, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", zlib.compress(48 * row))
        + _png_chunk(b"IEND", b"")
    )


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def _webp_header(width: int, height: int) -> bytes:
    """An extended WebP that claims a canvas of this size, and holds a small picture."""
    picture = encoded(quadrants(), "WEBP")[12:]
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + picture
    return b"RIFF" + struct.pack("<I", len(body)) + body
