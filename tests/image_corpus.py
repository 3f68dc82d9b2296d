"""Image files that a stranger may send: valid, odd, damaged, hostile, and files of other kinds."""

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

    IMAGE = auto()
    ERROR = auto()
    EITHER = auto()  # damage that some decoders tolerate


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
    """All files, the same ones in each run."""
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
    gray_16 = Image.fromarray(np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64))
    files = {
        f"png_{mode}.png": encoded(rgb.convert(mode), "PNG")
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
    }
    files |= {
        "png_alpha.png": encoded(alpha, "PNG"),
        "png_16_bit_gray.png": encoded(gray_16, "PNG"),
        "png_16_bit_rgb.png": _png_16_bit_rgb(),
        "png_transparent_palette.png": encoded(palette, "PNG", transparency=0),
        "png_transparent_color.png": encoded(rgb, "PNG", transparency=RED),
        "png_transparent_gray.png": encoded(rgb.convert("L"), "PNG", transparency=255),
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
        "jpeg_two_images.jpg": encoded(rgb, "MPO", save_all=True, append_images=[rgb]),
        "webp_lossy.webp": encoded(rgb, "WEBP"),
        "webp_lossless.webp": encoded(rgb, "WEBP", lossless=True),
        "webp_alpha.webp": encoded(alpha, "WEBP"),
        "webp_animated.webp": encoded(rgb, "WEBP", save_all=True, append_images=[alpha, rgb]),
        "avif.avif": encoded(rgb, "AVIF", quality=90),
        "avif_alpha.avif": encoded(alpha, "AVIF"),
        "avif_animated.avif": encoded(rgb, "AVIF", save_all=True, append_images=[alpha, rgb]),
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
        "large.avif": encoded(large, "AVIF", quality=50, speed=10),
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
        "avif_called_jpg.jpg": encoded(quadrants(), "AVIF"),
        "jpeg.jfif": jpeg,
        "jpeg.jpe": jpeg,
        "jpeg_without_ending": jpeg,
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
        "text.png": b"This is not an image.\n",
        "page.jpg": b"<!doctype html><title>x</title><img src=x onerror=alert(1)>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "billion_laughs.png": b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><x>&b;</x>',
        "archive.png": b"PK\x05\x06" + bytes(18),
        "pickle.png": b"\x80\x04\x95\x1a\x00\x00\x00cos\nsystem\n(S'true'\ntR.",
        "program.png": b"\x7fELF\x02\x01\x01" + bytes(200),
        "sound.gif": b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40),
        "heic.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500),
        "jpeg_xl.jpg": b"\xff\x0a" + bytes(500),
        "jpeg_xl_container.jpg": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(500),
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
    """Small files of huge images."""
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
        "6000x6000.avif": encoded(black.crop((0, 0, 6000, 6000)), "AVIF", speed=10),
        "21_megabytes.png": encoded(quadrants(), "PNG") + bytes(21 * 2**20),
    }


@cache
def _hostile() -> dict[str, bytes]:
    progressive = encoded(quadrants(2000, 2000), "JPEG", progressive=True)
    last_scan = progressive[progressive.rindex(b"\xff\xda") : -2]
    compressed_bmp = bytearray(encoded(quadrants(4000, 4000).convert("P"), "BMP")[:2000])
    compressed_bmp[30:34] = struct.pack("<I", 1)  # 8-bit run lengths
    jpeg, gif = encoded(quadrants(), "JPEG"), encoded(quadrants(), "GIF")
    return {
        "5_million_segments.jpg": jpeg[:2] + 4_900_000 * b"\xff\xfe\0\2" + jpeg[2:],
        "6_million_comments.gif": gif[:-1] + 6_000_000 * b"!\xfe\0" + b";",
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
    gif = encoded(quadrants(), "GIF")
    first = 13 + (3 << (gif[10] & 7) + 1)  # behind the global color table
    return {
        "compressed_text.png": png[:33] + _png_chunk(b"zTXt", b"T\0\0" + zeros) + png[33:],
        "compressed_profile.png": png[:33] + _png_chunk(b"iCCP", b"P\0\0" + zeros) + png[33:],
        "too_many_pixels.png": _png(64, 64, zeros),
        "5000_texts.png": png[:33] + 5000 * _png_chunk(b"tEXt", b"T\0" + bytes(100)) + png[33:],
        "long_exif.jpg": encoded(quadrants(), "JPEG", exif=exif),
        "18_MB_comment.gif": gif[:first] + b"!\xfe" + 9_000_000 * b"\1x" + b"\0" + gif[first:],
        "2000_frames.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    }


def _exif(*entries: tuple[int, int, int, bytes], rest: bytes = b"") -> bytes:
    """EXIF block with one directory of (tag, type, count, 4 bytes of value)."""
    directory = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    header = b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    return header + directory + bytes(4) + rest


def exif_of(orientation: int) -> bytes:
    """EXIF block with a valid orientation."""
    return _exif((EXIF_ORIENTATION, 3, 1, struct.pack("<HH", orientation, 0)))


def _with_segment(jpeg: bytes, marker: int, body: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + jpeg[2:]


def _with_chunk(png: bytes, chunk: bytes) -> bytes:
    return png[:33] + chunk + png[33:]


def _with_webp_chunk(webp: bytes, kind: bytes, body: bytes) -> bytes:
    data = webp[8:] + kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(data)) + data


def _wrong_checksum(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


@cache
def damaged_metadata() -> dict[str, bytes]:
    """The quadrants, upright, with damage beside the pixels."""
    jpeg = encoded(quadrants(), "JPEG", quality=95, subsampling=0)
    png, gif = encoded(quadrants(), "PNG"), encoded(quadrants(), "GIF")
    webp = encoded(quadrants(), "WEBP", lossless=True)
    camera = _exif((0x010F, 2, 4, b"ABC\0"))
    avif = encoded(quadrants(), "AVIF", quality=90, exif=camera, xmp=b"<x:xmpmeta/>")
    noise = np.random.default_rng(5).integers(0, 256, 5 * 2**20, np.uint8).tobytes()
    text = zlib.compress(b"x" * 1_200_000, 9)
    time = _png_chunk(b"tIME", struct.pack(">HBBBBB", 2026, 11, 25, 1, 2, 3))
    turned = exif_of(6)
    exif = {
        "twice_the_header": b"Exif\0\0" + exif_of(1),
        "empty": b"Exif\0\0",
        "garbage": b"Exif\0\0b'Exif\\x00\\x00'",
        "cut_short": turned[:20],
        "offset_outside": b"Exif\0\0II*\0" + struct.pack("<I", 60_000),
        "orientation_is_text": _exif((EXIF_ORIENTATION, 2, 2, b"6\0\0\0")),
        "orientation_is_rational": _exif(
            (EXIF_ORIENTATION, 5, 1, struct.pack("<I", 26)), rest=struct.pack("<II", 6, 1)
        ),
        "orientation_is_rational_0_0": _exif(
            (EXIF_ORIENTATION, 5, 1, struct.pack("<I", 26)), rest=bytes(8)
        ),
        "orientation_without_value": _exif((EXIF_ORIENTATION, 3, 0, bytes(4))),
        "orientation_twice": _exif((EXIF_ORIENTATION, 3, 2, struct.pack("<HH", 6, 6))),
        "orientation_is_absent": _exif((0x010F, 2, 2, b"A\0\0\0")),
        "orientation_is_9": exif_of(9),
    }
    files = {}
    for name, block in exif.items():
        files |= {
            f"exif_{name}.jpg": _with_segment(jpeg, 0xE1, block),
            f"exif_{name}.png": _with_chunk(png, _png_chunk(b"eXIf", block[6:])),
            f"exif_{name}.webp": encoded(quadrants(), "WEBP", lossless=True, exif=block),
        }
    # Pixels of these formats end before the trailer starts.
    trailer = b"MotionPhoto_Data" + b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + noise
    files |= {
        "motion_photo.jpg": jpeg + trailer,
        "motion_photo.webp": webp + trailer,
        "trailer.gif": gif + trailer,
        "trailer.bmp": encoded(quadrants(), "BMP") + trailer,
        "trailer.png": png + trailer,
    }
    files |= {
        "text_over_1_MB.png": _with_chunk(png, _png_chunk(b"zTXt", b"workflow\0\0" + text)),
        "itxt_over_1_MB.png": _with_chunk(
            png, _png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + text)
        ),
        "profile_over_1_MB.png": _with_chunk(png, _png_chunk(b"iCCP", b"P\0\0" + text)),
        "time_with_wrong_checksum.png": _with_chunk(png, _wrong_checksum(time)),
        "text_with_wrong_checksum.png": _with_chunk(
            png, _wrong_checksum(_png_chunk(b"tEXt", b"Title\0x"))
        ),
        "exif_with_wrong_checksum.png": _with_chunk(
            png, _wrong_checksum(_png_chunk(b"eXIf", turned[6:]))
        ),
        "transparency_with_wrong_checksum.png": _with_chunk(
            png, _wrong_checksum(_png_chunk(b"tRNS", struct.pack(">HHH", *RED)))
        ),
        "transparency_too_short.png": _with_chunk(png, _png_chunk(b"tRNS", b"\0")),
        "profile_of_unknown_compression.png": _with_chunk(png, _png_chunk(b"iCCP", b"P\0\7x")),
        "size_chunk_too_short.png": _with_chunk(png, _png_chunk(b"pHYs", b"\0")),
        "animation_chunk_too_short.png": _with_chunk(png, _png_chunk(b"acTL", b"")),
        "end_is_missing.png": png[:-12],
        "last_text_cut_short.png": png[:-12] + _png_chunk(b"tEXt", bytes(100))[:50],
        "raw_profile_is_garbage.png": _with_chunk(
            png, _png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"garbage"))
        ),
        "jfif_too_short.jpg": _with_segment(jpeg, 0xE0, b"JFIF\0"),
        "adobe_too_short.jpg": _with_segment(jpeg, 0xEE, b"Adobe"),
        "photoshop_is_garbage.jpg": _with_segment(jpeg, 0xED, b"Photoshop 3.0\x008BIM\xff"),
        "mpf_is_garbage.jpg": _with_segment(jpeg, 0xE2, b"MPF\0garbage"),
        "profile_is_garbage.jpg": _with_segment(jpeg, 0xE2, b"ICC_PROFILE\0"),
        "comment_of_length_0.jpg": jpeg[:2] + b"\xff\xfe\0\0" + jpeg[2:],
        "scans_in_a_comment.jpg": _with_segment(jpeg, 0xFE, 1000 * b"\xff\xda"),
        "second_image_is_cut_short.jpg": encoded(
            quadrants(), "MPO", save_all=True, append_images=[quadrants()], quality=95
        )[:-300],
        "second_frame_is_garbage.gif": gif[:-1] + b"," + noise[:100],
        "exif_is_cut_short.webp": _with_webp_chunk(webp, b"EXIF", turned)[:-10],
        "exif_is_garbage.avif": avif.replace(camera[6:], bytes(len(camera) - 6)),
        "xmp_is_garbage.avif": avif.replace(b"<x:xmpmeta/>", 12 * b"\xff"),
        "unknown_brand.avif": avif.replace(b"ftypavif", b"ftypmif1", 1),
        "transparency_is_0_everywhere.bmp": _bit_mask_bmp(32, alpha=0),
        "bit_masks_32.bmp": _bit_mask_bmp(32),
        "bit_masks_16.bmp": _bit_mask_bmp(16),
    }
    return files


def _bit_mask_bmp(bits: int, alpha: int = 255) -> bytes:
    """The quadrants as an uncompressed BMP with BI_BITFIELDS: BGRA or 5-6-5 bits."""
    image = np.asarray(quadrants())
    height, width = image.shape[:2]
    if bits == 32:
        opacity = np.full((height, width), alpha, np.uint8)
        pixels = np.dstack([image[..., ::-1], opacity])[::-1].tobytes()
        masks = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    else:
        red, green, blue = (image[..., i].astype(np.uint16) for i in range(3))
        pixels = ((red >> 3 << 11) | (green >> 2 << 5) | (blue >> 3)).astype("<u2")[::-1].tobytes()
        masks = (0xF800, 0x07E0, 0x001F, 0)
    head = struct.pack("<IiiHHIIiiII", 108, width, height, 1, bits, 3, len(pixels), 0, 0, 0, 0)
    head += struct.pack("<4I", *masks) + b"BGRs" + bytes(48)
    offset = 14 + len(head)
    return b"BM" + struct.pack("<IHHI", offset + len(pixels), 0, 0, offset) + head + pixels


@cache
def turned() -> dict[str, bytes]:
    """The quadrants in every kind of PNG, and other formats, to be turned right (orientation 6)."""
    rgb, exif = quadrants(), exif_of(6)
    gray_16 = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    files = {
        f"turned_{mode}.png": encoded(rgb.convert(mode), "PNG", exif=exif)
        for mode in ("1", "L", "LA", "P", "RGB", "RGBA")
    }
    palette = rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    png = encoded(rgb, "PNG")
    files |= {
        "turned_16_bit.png": encoded(gray_16, "PNG", exif=exif),
        "turned_transparent_palette.png": encoded(palette, "PNG", exif=exif, transparency=b"\xff"),
        "turned_transparent_16_bit.png": encoded(gray_16, "PNG", exif=exif, transparency=1),
        "turned_after_the_pixels.png": png[:-12] + _png_chunk(b"eXIf", exif[6:]) + png[-12:],
        "turned.webp": encoded(rgb, "WEBP", lossless=True, exif=exif),
        "turned_without_header.webp": encoded(rgb, "WEBP", lossless=True, exif=exif[6:]),
        "turned.avif": encoded(rgb, "AVIF", quality=95, exif=exif),
        "turned_CMYK.jpg": encoded(rgb.convert("CMYK"), "JPEG", quality=95, exif=exif),
        "turned_big_endian.jpg": encoded(
            rgb, "JPEG", quality=95,
            exif=b"Exif\0\0MM\0*" + struct.pack(">IHHHIHHI", 8, 1, EXIF_ORIENTATION, 3, 1, 6, 0, 0),
        ),
    }  # fmt: skip
    return files


# What takes long to make comes last, so that `data_of` seldom makes it.
_GROUPS = {
    _modes: Expected.IMAGE,
    _orientations: Expected.IMAGE,
    damaged_metadata: Expected.IMAGE,
    turned: Expected.IMAGE,
    _sizes: Expected.IMAGE,
    _polyglots: Expected.IMAGE,
    _foreign: Expected.ERROR,
    _truncated: Expected.EITHER,
    _flipped: Expected.EITHER,
    _hostile: Expected.ERROR,
    _bloated: Expected.EITHER,
    _too_large: Expected.ERROR,
    _large: Expected.IMAGE,
}


def _png(width: int, height: int, compressed_rows: bytes) -> bytes:
    """An 8-bit grayscale PNG of the size it says, with any rows."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _png_chunk(b"IHDR", header)
        + _png_chunk(b"IDAT", compressed_rows)
        + _png_chunk(b"IEND", b"")
    )


def _png_16_bit_rgb() -> bytes:
    """64 x 48 pixels of one color, red 65535, green 32768, blue 0."""
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
    """An extended WebP that claims a canvas of this size, and holds a small image."""
    image = encoded(quadrants(), "WEBP")[12:]
    canvas = bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + image
    return b"RIFF" + struct.pack("<I", len(body)) + body
