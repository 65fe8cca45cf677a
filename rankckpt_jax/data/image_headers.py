"""Reads what the first bytes of image files state: kind, orientation, bit depth."""

from __future__ import annotations

import dataclasses
import struct
from typing import BinaryIO

KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
"""Kinds of files that are read, as Pillow names them."""

READABLE = "JPEG, PNG, GIF, BMP, WebP or TIFF"

# Start of the file, bytes at offset 8, kind.
_SIGNATURES = (
    (b"\xff\xd8\xff", b"", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", b"", "PNG"),
    (b"GIF8", b"", "GIF"),
    (b"BM", b"", "BMP"),
    (b"RIFF", b"WEBP", "WEBP"),
    (b"II*\0", b"", "TIFF"),
    (b"MM\0*", b"", "TIFF"),
    (b"II+\0", b"", "TIFF"),
    (b"MM\0+", b"", "TIFF"),
    # Kinds that some installations do not decode, or decode differently.
    (b"\xff\x0a", b"", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", b"", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", b"", "JPEG 2000"),
)
# Brands of the container of HEIC and AVIF, at offset 8 behind "ftyp".
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC"}
_BRANDS |= {b"mif1": "HEIC", b"msf1": "HEIC"}

_ORIENTATION_TAG = 0x0112
_EXIF = b"Exif\0\0"
# EXIF data fits into a segment of a JPEG file.
_MAX_EXIF_BYTES = 1 << 16
# Parts of a file in front of its pixels; a hostile one could have millions.
_MAX_PARTS = 1000
# Markers of a JPEG file that start its frame; C4, C8 and CC are tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclasses.dataclass(frozen=True)
class Header:
    """Facts from the header of an image file.

    Attributes:
      kind: One of KINDS, another known kind, or "".
      orientation: EXIF orientation that is to be applied, from 1 to 8; 1 if there is
        none, and for TIFF, whose decoder applies it.
      why: Why the file cannot be read; empty if it may be read.
    """

    kind: str
    orientation: int = 1
    why: str = ""


def kind_of(start: bytes) -> str:
    """Return the kind of a file from its first 12 bytes; "" if it is unknown."""
    for signature, later, kind in _SIGNATURES:
        if start.startswith(signature) and start[8:].startswith(later):
            return kind
    return _BRANDS.get(start[8:12], "") if start[4:8] == b"ftyp" else ""


def read(file: BinaryIO) -> Header:
    """Read the header of a file that is open at its start.

    A damaged header is not an error here: decoding the image finds it.
    """
    kind = kind_of(file.read(12))
    if not kind:
        return Header("", why=f"not a {READABLE} file")
    if kind not in KINDS:
        article = "an" if kind == "AVIF" else "a"
        why = f"{article} {kind} file, which is not read; convert it to JPEG or PNG"
        return Header(kind, why=why)
    try:
        if kind == "JPEG":
            return _read_jpeg(file)
        if kind == "PNG":
            return Header(kind, _orientation(_png_exif(file)))
        if kind == "WEBP":
            return Header(kind, _orientation(_webp_exif(file)))
    except struct.error:
        pass  # The file ends within its header.
    return Header(kind)


def _read_jpeg(file: BinaryIO) -> Header:
    """Read the segments of a JPEG file up to its frame."""
    file.seek(2)
    orientation = 1
    for _ in range(_MAX_PARTS):
        marker = file.read(2)
        if len(marker) < 2 or marker[0] != 0xFF:
            break
        if marker[1] == 0xFF:  # A fill byte.
            file.seek(-1, 1)
            continue
        (length,) = struct.unpack(">H", file.read(2))
        if marker[1] in _FRAMES:
            (bits,) = file.read(1) or b"\x08"
            why = f"a JPEG file of {bits} bits per sample; convert it to 8 bits"
            return Header("JPEG", orientation, "" if bits == 8 else why)
        if marker[1] == 0xE1 and orientation == 1:
            segment = file.read(max(length - 2, 0))
            if segment.startswith(_EXIF):
                orientation = _orientation(segment)
        else:
            file.seek(length - 2, 1)
    return Header("JPEG", orientation)


def _png_exif(file: BinaryIO) -> bytes:
    """Return the EXIF data in front of the pixels of a PNG file."""
    file.seek(8)
    for _ in range(_MAX_PARTS):
        length, name = struct.unpack(">I4s", file.read(8))
        if name == b"eXIf":
            return file.read(min(length, _MAX_EXIF_BYTES))
        if name in (b"IDAT", b"IEND"):
            break
        file.seek(length + 4, 1)
    return b""


def _webp_exif(file: BinaryIO) -> bytes:
    file.seek(12)
    for _ in range(_MAX_PARTS):
        name, length = struct.unpack("<4sI", file.read(8))
        if name == b"EXIF":
            return file.read(min(length, _MAX_EXIF_BYTES))
        file.seek(length + length % 2, 1)
    return b""


def _orientation(exif: bytes) -> int:
    """Return the orientation of the first image in EXIF data; 1 without a valid one."""
    tiff = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for i in range(count):
            entry = start + 2 + 12 * i
            tag, kind, number = struct.unpack_from(f"{order}HHI", tiff, entry)
            if tag == _ORIENTATION_TAG:
                (value,) = struct.unpack_from(f"{order}H", tiff, entry + 8)
                valid = kind == 3 and number == 1 and 1 <= value <= 8
                return value if valid else 1
    except struct.error:
        pass  # The directory ends too early.
    return 1
