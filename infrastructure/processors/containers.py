"""Types of files that share a container format: zip, OLE2, ISO-BMFF, TIFF and EBML."""

from __future__ import annotations

import re
from struct import unpack_from

from infrastructure.processors.media_types import COMPOUND, OFFICE, OPEN_DOCUMENT, ZIP

COMPOUND_SIGNATURE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

# Brands of https://mp4ra.org/registered-types/brands, by their first three or four bytes.
_BRANDS: tuple[tuple[bytes, str], ...] = (
    *((brand, "image/heic") for brand in (b"heic", b"heix", b"heim", b"heis")),
    *((brand, "image/heic-sequence") for brand in (b"hevc", b"hevx", b"hevm", b"hevs")),
    (b"avif", "image/avif"),
    (b"avis", "image/avif"),
    (b"crx ", "image/x-canon-cr3"),
    (b"jp2 ", "image/jp2"),
    (b"jpx ", "image/jp2"),
    (b"jxl ", "image/jxl"),
    *((brand, "audio/mp4") for brand in (b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B ")),
    (b"M4V", "video/x-m4v"),
    (b"qt  ", "video/quicktime"),
    (b"3g2", "video/3gpp2"),
    *((brand, "video/3gpp") for brand in (b"3gp", b"3ge", b"3gg", b"3gr", b"3gs", b"3gt", b"3gh")),
)
_STILL = {b"mif1": "image/heif", b"mif2": "image/heif", b"msf1": "image/heif-sequence"}
"""Brands that say an image is in the file, but not how it is encoded."""

_OFFICE_PARTS = (
    ("word/", f"{OFFICE}wordprocessingml.document", "application/vnd.ms-word.document"),
    ("xl/", f"{OFFICE}spreadsheetml.sheet", "application/vnd.ms-excel.sheet"),
    ("ppt/", f"{OFFICE}presentationml.presentation", "application/vnd.ms-powerpoint.presentation"),
    ("visio/", "application/vnd.ms-visio.drawing", "application/vnd.ms-visio.drawing"),
)
_MAX_MEMBERS = 20_000
_MAX_BOXES = 1000

_STREAMS = (
    ("WordDocument", "application/msword"),
    ("Workbook", "application/vnd.ms-excel"),
    ("Book", "application/vnd.ms-excel"),
    ("PowerPoint Document", "application/vnd.ms-powerpoint"),
    ("__properties_version1.0", "application/vnd.ms-outlook"),
    ("__nameid_version1.0", "application/vnd.ms-outlook"),
    ("VisioDocument", "application/vnd.visio"),
)
_INSTALLER = bytes.fromhex("84100c0000000000c000000000000046")  # class id of the root storage

_RAW_MAKERS = (
    (b"NIKON", "image/x-nikon-nef"),
    (b"SONY", "image/x-sony-arw"),
    (b"PENTAX", "image/x-pentax-pef"),
    (b"SAMSUNG", "image/x-samsung-srw"),
    (b"Canon", "image/x-canon-cr2"),
)
_SUBFILE, _PHOTOMETRIC, _MAKE, _SUB_DIRECTORIES, _DNG_VERSION = 254, 262, 271, 330, 50706
_SENSOR = (32803, 34892)  # photometric interpretations of raw data: CFA, LinearRaw


def first_box_beyond(head: bytes) -> int:
    """Return where the first top-level box of an ISO base media file begins beyond the head.

    What describes the tracks is often there, behind the media data.
    """
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 16 > len(head):
            break
        length = int.from_bytes(head[at : at + 4], "big")
        if length == 1:  # a length of 64 bits follows
            length = int.from_bytes(head[at + 8 : at + 16], "big")
        if length < 8:
            break
        at += length
    return at


def _is_sound_only(part: bytes) -> bool:
    """Return whether a part of a file has the whole description of its tracks, and sound alone."""
    at = part.find(b"moov")
    if at < 4:
        return False
    movie = part[at - 4 : at - 4 + int.from_bytes(part[at - 4 : at], "big")]
    is_whole = len(movie) == int.from_bytes(part[at - 4 : at], "big")
    return is_whole and b"soun" in movie and b"vide" not in movie


def iso_media_type(head: bytes, second: bytes) -> str:
    """Return the type of an ISO base media file by its brands, the major one first."""
    length = min(int.from_bytes(head[:4], "big"), 1024)
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, max(length, 16), 4))]
    major = brands[0]
    if major in _STILL:
        images = (name for brand in brands[1:] if (name := _brand(brand)) and "image" in name)
        return next(images, _STILL[major])
    if found := _brand(major):
        return found
    return "audio/mp4" if _is_sound_only(head) or _is_sound_only(second) else "video/mp4"


def _brand(brand: bytes) -> str | None:
    return next((name for start, name in _BRANDS if brand.startswith(start)), None)


def matroska_type(head: bytes) -> str:
    """Return the type of an EBML file by its document type and the codecs of its tracks."""
    found = re.search(rb"\x42\x82[\x80-\xff\x40-\x7f\x00]*(webm|matroska)", head[:1024])
    name = found[1].decode() if found else "matroska"
    return f"audio/{name}" if b"A_" in head and b"V_" not in head else f"video/{name}"


def zip_type(head: bytes, tail: bytes) -> str:
    """Return the type of a zip file by its members: those at its beginning and in its directory."""
    names = {*_local_names(head), *_directory_names(tail or head)}
    if declared := _declared_type(head):
        return declared
    if {"mimetype", "META-INF/container.xml"} <= names:  # packed by a tool that does not know EPUB
        return "application/epub+zip"
    if "[Content_Types].xml" in names:
        return _office_type(names)
    if "AndroidManifest.xml" in names and names & {"classes.dex", "resources.arsc"}:
        return "application/vnd.android.package-archive"
    if "META-INF/MANIFEST.MF" in names:
        return "application/java-archive"
    if "doc.kml" in names:
        return "application/vnd.google-earth.kmz"
    return ZIP


def _declared_type(head: bytes) -> str | None:
    """Return the media type in the stored first member `mimetype`.

    Sources: OpenDocument 1.3 part 2, section 3.3; EPUB 3.3, section 4.2.6.3.
    """
    if head[30:38] != b"mimetype" or head[8:10] != b"\0\0":
        return None
    at = 38 + unpack_from("<H", head, 28)[0]
    found = re.match(rb"[a-z]+/[a-z0-9.+-]{1,100}", head[at : at + 128])
    name = found[0].decode() if found else ""
    known = name.startswith((OPEN_DOCUMENT, "application/vnd.sun.xml.")) or name.endswith("+zip")
    return name if known else None


def _office_type(names: set[str]) -> str:
    """Return the type of an Open Packaging Convention file by the folders of its parts."""
    if any(name.endswith(".fdseq") for name in names):
        return "application/vnd.ms-xpsdocument"
    has_macros = any(name.endswith("vbaProject.bin") for name in names)
    for folder, plain, with_macros in _OFFICE_PARTS:
        if any(name.startswith(folder) for name in names):
            return f"{with_macros}.macroenabled.12" if has_macros else plain
    return ZIP


def _local_names(head: bytes) -> list[str]:
    """Return the names of the first members, up to the first without a size in its header."""
    names: list[str] = []
    at = 0
    while head[at : at + 4] == b"PK\3\4" and len(names) < _MAX_MEMBERS and at + 30 <= len(head):
        flags, size = unpack_from("<H", head, at + 6)[0], unpack_from("<I", head, at + 18)[0]
        name, extra = unpack_from("<HH", head, at + 26)
        names.append(head[at + 30 : at + 30 + name].decode("utf-8", "replace"))
        if flags & 8 and not size:  # its size comes after it
            at = head.find(b"PK\3\4", at + 30)
            if at < 0:
                break
        else:
            at += 30 + name + extra + size
    return names


def _directory_names(tail: bytes) -> list[str]:
    names: list[str] = []
    at = tail.find(b"PK\1\2")
    while 0 <= at <= len(tail) - 46 and len(names) < _MAX_MEMBERS:
        if tail[at : at + 4] != b"PK\1\2":
            at = tail.find(b"PK\1\2", at)
            continue
        name, extra, comment = unpack_from("<HHH", tail, at + 28)
        names.append(tail[at + 46 : at + 46 + name].decode("utf-8", "replace"))
        at += 46 + name + extra + comment
    return names


def compound_directory(head: bytes) -> int:
    """Return where an OLE2 file has its first directory sector ([MS-CFB] section 2.2)."""
    shift = min(unpack_from("<H", head, 30)[0], 20)
    start: int = (unpack_from("<I", head, 48)[0] + 1) << shift
    return start


def compound_type(head: bytes, second: bytes) -> str:
    """Return the type of an OLE2 file by the streams that its directory names."""
    start = compound_directory(head)
    directory = second or head[start : start + 4096]
    names = set()
    for at in range(0, len(directory) - 127, 128):
        length = unpack_from("<H", directory, at + 64)[0]
        names.add(directory[at : at + max(length - 2, 0)].decode("utf-16-le", "replace"))
    for stream, media_type in _STREAMS:
        if stream in names:
            return media_type
    for stream, media_type in _STREAMS:  # a directory in pieces is not all in one place
        if stream.encode("utf-16-le") + b"\0\0" in head:
            return media_type
    return "application/x-msi" if _INSTALLER in (head[8:24], directory[80:96]) else COMPOUND


def tiff_type(head: bytes) -> str:
    """Return `image/tiff`, or the camera's raw format that is dressed as one."""
    if head[8:10] == b"CR":
        return "image/x-canon-cr2"
    tags = _tiff_tags(head)
    if _DNG_VERSION in tags:
        return "image/x-adobe-dng"
    reduced = tags.get(_SUBFILE, 0) & 1 and _SUB_DIRECTORIES in tags
    if tags.get(_PHOTOMETRIC) in _SENSOR or reduced:
        at = tags.get(_MAKE, 0)
        maker = head[at : at + 32]
        return next((name for make, name in _RAW_MAKERS if maker.startswith(make)), "image/tiff")
    return "image/tiff"


def _tiff_tags(head: bytes) -> dict[int, int]:
    """Return the first directory's tags with their values or offsets, where it is in the head."""
    order = "<" if head[:2] == b"II" else ">"
    if head[2:4] not in (b"*\0", b"\0*"):
        return {}  # BigTIFF: no camera writes one
    at = unpack_from(f"{order}I", head, 4)[0]
    if not 8 <= at <= len(head) - 2:
        return {}
    count = unpack_from(f"{order}H", head, at)[0]
    tags = {}
    for entry in range(at + 2, min(at + 2 + 12 * count, len(head) - 11), 12):
        tag, kind = unpack_from(f"{order}HH", head, entry)
        value = "H" if kind == 3 else "I"
        tags[tag] = unpack_from(f"{order}{value}", head, entry + 8)[0]
    return tags
