"""What the first bytes of a file say it is, and how many pixels an image claims to have."""

from __future__ import annotations

from struct import error as StructError
from struct import unpack_from

import puremagic

HEAD = 64 * 1024  # bytes that are looked at

EMPTY = "application/x-empty"
TEXT = "text/plain"
UNKNOWN = "application/octet-stream"

# Formats that a thumbnail can be made of, by the names their files go under.
RASTER = {
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "avif": "image/avif",
}

_SIGNATURES = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"II+\0", "image/tiff"),  # BigTIFF
    (b"MM\0+", "image/tiff"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"PK\x05\x06", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
    (b"\x7fELF", "application/x-executable"),
)

_LEAST = 4  # bytes of a signature that is believed

# The library tries each of its signatures on every file; this finds out faster that none fits.
_KNOWN: dict[tuple[int, int], set[bytes]] = {}
for _row in puremagic.magic_header_array:
    if len(_row.byte_match) >= _LEAST and _row.offset >= 0:
        _KNOWN.setdefault((_row.offset, len(_row.byte_match)), set()).add(_row.byte_match)

_TEXT_CONTROLS = frozenset(b"\t\n\v\f\r\x1b\b")
_BINARY = bytes(code for code in range(32) if code not in _TEXT_CONTROLS) + b"\x7f"


def sniff(head: bytes) -> str:
    """The media type of a file that begins with these bytes; `application/octet-stream` if unsure.

    Text is text, whatever signature of two letters it happens to begin with.
    """
    if not head:
        return EMPTY
    for signature, media_type in _SIGNATURES:
        if head.startswith(signature):
            return media_type
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[:2] == b"BM" and len(head) >= 26 and not _is_text(head):
        return "image/bmp"
    if head[4:8] == b"ftyp" and b"avif" in head[8:64]:
        return "image/avif"
    if _is_text(head):
        return TEXT
    return _puremagic(head)


def raster_type(path: str, media_type: str | None) -> str | None:
    """The image format that a file is declared as, or named like; None where it is neither."""
    declared = (media_type or "").partition(";")[0].strip().lower()
    if declared in RASTER.values():
        return declared
    return RASTER.get(path.rpartition(".")[2].lower()) if "." in path else None


def pixels(head: bytes, sniffed: str) -> tuple[int, int] | None:
    """Width and height as an image's header claims them; None where they are not found.

    Sources: PNG specification section 11.2.2 (IHDR), GIF89a section 18, BITMAPINFOHEADER,
    RFC 9649 sections 2.5 to 2.7 (WebP), ITU T.81 annex B.2.2 (JPEG frame header).
    """
    try:
        match sniffed:
            case "image/png":
                width, height = unpack_from(">II", head, 16)
            case "image/gif":
                width, height = unpack_from("<HH", head, 6)
            case "image/bmp":
                width, height = unpack_from("<ii", head, 18)
            case "image/webp":
                return _webp_pixels(head)
            case "image/jpeg":
                return _jpeg_pixels(head)
            case _:
                return None
    except (ValueError, IndexError, ArithmeticError, StructError):
        return None
    return abs(width), abs(height)


def _webp_pixels(head: bytes) -> tuple[int, int] | None:
    match head[12:16]:
        case b"VP8X":
            width = int.from_bytes(head[24:27], "little") + 1
            return width, int.from_bytes(head[27:30], "little") + 1
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = unpack_from("<HH", head, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_pixels(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = unpack_from(">HH", head, at + 5)
            return width, height
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    return None


def _is_text(head: bytes) -> bool:
    if head.translate(None, _BINARY) != head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # a character cut in two by the end of the head
    return True


def _puremagic(head: bytes) -> str:
    if not any(head[at : at + length] in known for (at, length), known in _KNOWN.items()):
        return UNKNOWN
    try:
        found = puremagic.magic_string(head)
    except (puremagic.PureError, ValueError):
        return UNKNOWN
    believed = (match for match in found if len(match.byte_match) >= _LEAST and match.mime_type)
    return next((str(match.mime_type) for match in believed), UNKNOWN)
