"""Reduce an untrusted image file to the bytes that its first frame is decoded from.

Metadata, trailers and later frames are dropped before a decoder sees them: in browsers, too,
damage there does not keep the image from being shown. The format is recognized by content,
whatever the file is called.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import features

# More chunks, segments or blocks than any encoder writes; walking them takes time.
_MAX_PARTS = 100_000
# A progressive JPEG may ask for thousands of passes over the image; cameras write about ten.
_MAX_JPEG_SCANS = 64

# Start of image, frame headers, tables, scans, end of image, APPn and comment. Not the restart
# markers and stuffed zeros within entropy-coded data.
_JPEG_MARKER = re.compile(rb"\xff+([\xc0-\xcf\xd8-\xfe])")
_JPEG_START, _JPEG_END, _JPEG_SCAN = 0xD8, 0xD9, 0xDA
# Item types of EXIF and XMP in the item entries (versions 2 and 3) of an AVIF file.
_AVIF_METADATA_ITEM = re.compile(rb"(infe[\2\3].{7}(?:..)?)(?:Exif|mime)", re.DOTALL)


class ImageFileError(Exception):
    """The file cannot be decoded; the message says why, in one sentence."""


class UnknownFormatError(ImageFileError):
    """The file is of none of the formats that are recognized here."""


class FirstFrame(NamedTuple):
    """A file of one image without metadata."""

    data: bytes
    exif: bytes = b""  # EXIF block of the original file, unchecked
    animated: bool = False  # whether the original file has further frames


def first_frame(data: bytes) -> tuple[str, FirstFrame]:
    """Recognize the format of an image file and reduce the file to its first frame.

    Returns
    -------
    The format's name in Pillow, and the reduced file

    Raises
    ------
    ImageFileError : another format, or one with too many parts
    """
    name = recognize(data)
    if name is None:
        raise UnknownFormatError("The file is not a PNG, JPEG, WebP, GIF, BMP or AVIF image.")
    reader = _FORMATS[name][1]
    if reader and (name != "AVIF" or features.check("avif")):
        return name, reader(data)
    where = " by the installed Pillow" if reader else ""
    hint = " (iPhone: Settings, Camera, Formats, Most Compatible)" if name == "HEIC" else ""
    raise ImageFileError(f"{name} is not supported{where}. Save the image as JPEG or PNG{hint}.")


def recognize(data: bytes) -> str | None:
    """Name of the format of a file, of which the first kilobyte is enough; None if unknown."""
    # AVIF and HEIC files start with a box that states its length and lists the formats.
    box = data[: max(12, min(int.from_bytes(data[:4]), 1024))]
    for name, (signature, _) in _FORMATS.items():
        if re.match(signature, box, re.DOTALL):
            return name
    return None


def exif_orientation(exif: bytes) -> int:
    """Orientation (1 to 8) that an EXIF block gives; 1 where it gives none or is damaged.

    Like browsers, it accepts a single SHORT only: the tag as text or as a rational is ignored.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, start)
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", exif, at)
            if (tag, kind, count) == (0x0112, 3, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _parts() -> Iterator[None]:
    yield from [None] * _MAX_PARTS
    raise ImageFileError("The file has too many parts. Save the image again and try that file.")


def _png(data: bytes) -> FirstFrame:
    kept, exif, animated, at = [data[:8]], b"", False, 8
    transparency_length = {b"\0": 2, b"\2": 6}.get(data[25:26])  # of gray and RGB
    for _ in _parts():
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        chunk = data[at : at + 12 + length]
        at += 12 + length
        if kind in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            kept.append(chunk)
            if kind == b"IEND":
                break
        elif chunk[-4:] != zlib.crc32(chunk[4:-4]).to_bytes(4):
            continue
        elif kind == b"eXIf":
            exif = chunk[8:-4]
        elif kind == b"acTL":
            animated = int.from_bytes(chunk[8:-4][:4]) > 1
        elif kind == b"tRNS" and transparency_length in (None, length):
            kept.append(chunk)
    return FirstFrame(b"".join(kept), exif, animated)


def _jpeg(data: bytes) -> FirstFrame:
    kept, exif, scans, in_scan, at = [b"\xff\xd8"], b"", 0, False, 2
    for _ in _parts():
        match = _JPEG_MARKER.search(data, at)
        if in_scan:
            kept.append(data[at : match.start() if match else None])
        if match is None:
            break
        marker, start = match[1][0], match.end()
        if marker == _JPEG_END:
            kept.append(b"\xff\xd9")
            break
        length = 0 if marker == _JPEG_START else int.from_bytes(data[start : start + 2])
        segment, at = data[start : start + length], start + length
        body = segment[2:]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        # Two APPn segments tell how colors are stored.
        if (
            (0xC0 <= marker < 0xE0 and marker != _JPEG_START)
            or (marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14)
            or (marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12)
        ):
            kept.append(bytes([0xFF, marker]) + segment)
        in_scan = marker == _JPEG_SCAN
        scans += in_scan
        if scans > _MAX_JPEG_SCANS:
            raise ImageFileError(
                f"The JPEG has more than {_MAX_JPEG_SCANS} scans. Save it again and try that file."
            )
    return FirstFrame(b"".join(kept), exif)


def _gif(data: bytes) -> FirstFrame:
    at = 13 + _color_table_size(data[10:11])
    kept, control, animated = [data[:at]], b"", False
    for _ in _parts():
        kind = data[at : at + 2]
        if kind.startswith(b"!"):  # an extension
            end = _end_of_sub_blocks(data, at + 2)
            if kind == b"!\xf9":  # graphic control: which color is transparent
                control = data[at:end]
        elif kind.startswith(b",") and len(kept) == 1:
            end = _end_of_sub_blocks(data, at + 11 + _color_table_size(data[at + 9 : at + 10]))
            kept += [control, data[at:end]]
            if end <= len(data):
                kept.append(b";")
        else:
            animated = kind.startswith(b",")
            break
        at = end
    return FirstFrame(b"".join(kept), animated=animated)


def _color_table_size(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0


def _end_of_sub_blocks(data: bytes, at: int) -> int:
    """Offset behind the sub-blocks at `at`; beyond `data` where they are cut short."""
    try:
        while size := data[at]:
            at += size + 1
    except IndexError:
        return len(data) + 1
    return at + 1


def _webp(data: bytes) -> FirstFrame:
    kept, exif, animated, at = [b"WEBP"], b"", False, 12
    data = data[: 8 + int.from_bytes(data[4:8], "little")]
    for _ in _parts():
        if at + 8 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, at)
        chunk = data[at : at + 8 + size]
        at += 8 + size + size % 2
        if kind == b"VP8X":  # alpha and animation may stay, of ten bytes of flags and size
            kept.append(chunk[:8] + bytes([chunk[8] & 0x12]) + chunk[9:])
        elif kind == b"EXIF":
            exif = exif or chunk[8:]
        elif kind == b"ANMF" and kind in (part[:4] for part in kept):
            animated = True
        elif kind in (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF"):
            kept.append(chunk + bytes(size % 2))
    body = b"".join(kept)
    return FirstFrame(b"RIFF" + struct.pack("<I", len(body)) + body, exif, animated)


def _avif(data: bytes) -> FirstFrame:
    # Offsets into the file must stay as they are, so items of metadata become unknown items.
    reduced = _AVIF_METADATA_ITEM.sub(rb"\1free", data)
    return FirstFrame(reduced, animated=b"avis" in data[: int.from_bytes(data[:4])][:1024])


# By name in Pillow: pattern of the first bytes, and what reads the format, if anything does.
_FORMATS = {
    "PNG": (rb"\x89PNG\r\n\x1a\n", _png),
    "JPEG": (rb"\xff\xd8\xff", _jpeg),
    "WEBP": (rb"RIFF....WEBP", _webp),
    "GIF": (rb"GIF8[79]a", _gif),
    "BMP": (rb"BM", FirstFrame),
    "AVIF": (rb"....ftyp(....)*(avif|avis)", _avif),
    "HEIC": (rb"....ftyp(....)*(hei[cxms]|hev[cx]|mif1|msf1)", None),
    "JPEG XL": (rb"\xff\x0a|\0\0\0\x0cJXL ", None),
}
