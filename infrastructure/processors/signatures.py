"""Detection of media types by the first bytes, with rules that precede those of libmagic.

The rules here are comparisons of at most two ranges of a file (`second_range`), in Python alone;
they decide for text, for containers, and for what most uploads are. Where they do not, `sniff`
returns None, and libmagic decides in the sandbox (`libmagic_child`).
"""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from struct import error as StructError
from struct import unpack_from

from infrastructure.processors import containers, media_types

HEAD_BYTES = 64 * 1024  # bytes that are looked at

_NDJSON = "application/x-ndjson"
_TABLES = {"text/csv": ",;\t|", "text/tab-separated-values": "\t"}

# libmagic's weakest rules: a few zero bytes are enough for them.
_DISBELIEVED = frozenset(
    (
        "image/x-tga",
        "application/x-dbf",
        "image/x-pcx",
        "image/x-award-bmp",
        "application/x-adobe-aco",
    )
)

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"\xff\x4f\xff\x51\0", "image/j2c"),
    (0, b"DDS \x7c\0\0\0", "image/vnd.ms-dds"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "image/jp2"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
    (0, b"\0\0\x01\0", "image/vnd.microsoft.icon"),
    (0, b"%PDF-", "application/pdf"),
    (0, b"fLaC", "audio/flac"),
    (0, b"\x1f\x8b", "application/gzip"),
    (0, b"\0asm", "application/wasm"),
    (0, b"PAR1", "application/vnd.apache.parquet"),
    (0, b"Obj\x01", "application/avro"),
    (0, b"dex\n0", "application/vnd.android.dex"),
    (0, b"\0\x01\0\0\0", "font/ttf"),
    (0, b"true\0", "font/ttf"),
    (0, b"OTTO\0", "font/otf"),
    (0, b"\x7fELF", "application/x-executable"),
    (40, b" EMF", "image/emf"),
)

_TEXT_SIGNATURES = (
    ("%PDF-", "application/pdf"),
    ("{\\rtf", "application/rtf"),
    ("%!PS", "application/postscript"),
    ("#?RADIANCE", "image/vnd.radiance"),
    ("/* XPM */", "image/x-xpixmap"),
    ("BEGIN:VCALENDAR", "text/calendar"),
    ("BEGIN:VCARD", "text/vcard"),
    ("d8:announce", "application/x-bittorrent"),
    ("d13:announce", "application/x-bittorrent"),
)
_NETPBM = {
    "1": "bitmap",
    "2": "graymap",
    "3": "pixmap",
    "4": "bitmap",
    "5": "graymap",
    "6": "pixmap",
}
_SCRIPTS = re.compile(r"#!.*?\b(python|php|sh|bash|dash|zsh|ksh)", re.ASCII)
_MAX_FIRST_LINE = 256

# Section 7.1 of the WHATWG MIME Sniffing Standard, and tags that begin a page as well.
_HTML_TAGS = frozenset(
    (
        *("html", "head", "script", "iframe", "h1", "div", "font", "table", "a", "style", "title"),
        *("b", "body", "br", "p", "img", "meta", "frameset", "center", "h2", "h3", "h4", "h5"),
        *("h6", "span", "ul", "ol", "pre", "embed", "marquee", "noscript"),
    )
)
_PROLOG = re.compile(
    r"[ \t\n\f\r]+|(?P<comment><!--.*?(?:-->|$))"
    r"|(?P<php><\?(?:php\b|=))|(?P<xml><\?xml\b)|<\?.*?(?:\?>|$)"
    r"|<!doctype[ \t\n\f\r]+(?P<doctype>[\w:.-]+)[^\[>]*(?:\[.*?\][ \t\n\f\r]*)?(?:>|$)",
    re.DOTALL | re.IGNORECASE,
)
_ROOT = re.compile(r"<(?:[\w.-]+:)?([A-Za-z][\w.-]*)([^<>]*)")
_XHTML_NAMESPACE = "http://www.w3.org/1999/xhtml"

# Binary data bytes: section 3 of the WHATWG MIME Sniffing Standard, less \b and \v.
_BINARY = bytes(code for code in range(32) if code not in b"\t\n\v\f\r\x1b\b")


def sniff(head: bytes, second: bytes, size: int, claims: Sequence[str] = ()) -> str | None:
    """Return the canonical media type of a file of `size` bytes; None if no rule decides.

    `claims` are the types that the file is declared as or named like, in this order. They decide
    between kinds of text only, and only where the text is what they say.
    """
    if not head:
        return media_types.EMPTY
    if (text := decode_text(head)) is not None:
        return _kind_of_text(text, len(head) >= size, claims)
    if (found := _disguised_markup(head)) is not None:
        return _claimed_markup(found, claims)
    for offset, signature, media_type in _SIGNATURES:
        if head.startswith(signature, offset):
            return media_type
    for rule in (_container_type, _riff_type, _stream_type):
        try:
            if found := rule(head, second, size):
                return found
        except (StructError, IndexError, ValueError):
            continue
    return None


def conclude(verdict: str, head: bytes, size: int, claims: Sequence[str] = ()) -> str:
    """Return the canonical media type of a file that only libmagic has a verdict on."""
    found = media_types.canonical(verdict)
    if found in _DISBELIEVED:
        found = media_types.UNKNOWN
    if (found == media_types.UNKNOWN or media_types.is_text(found)) and not _has_binary(
        head
    ):  # some other encoding
        return _kind_of_text(head.decode("latin-1"), len(head) >= size, claims)
    if found == media_types.UNKNOWN or media_types.is_text(found):
        return _late_stream_type(head)
    return found


def second_range(head: bytes, size: int) -> tuple[int, int] | None:
    """Return the second range needed to detect a type: where a container has its directory."""
    if size <= len(head):
        return None
    if head.startswith(b"PK\3\4"):
        return max(len(head), size - HEAD_BYTES), size
    if head.startswith(containers.COMPOUND_SIGNATURE):
        start = containers.compound_directory(head)
        return (start, min(start + 4096, size)) if len(head) <= start < size else None
    if head[4:8] == b"ftyp":
        start = containers.first_box_beyond(head)
        return (start, min(start + HEAD_BYTES, size)) if start < size else None
    return None


def decode_text(head: bytes) -> str | None:
    """Return the text that a file begins with in UTF-8 or UTF-16; None if it is something else."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(mark):
            return _plain(head[2:].decode(encoding, "replace"))
    if len(head) >= 4 and head[0] and head[1] == 0 == head[3] and head[2]:
        return _plain(head.decode("utf-16-le", "replace"))
    if len(head) >= 4 and head[1] and head[0] == 0 == head[2] and head[3]:
        return _plain(head.decode("utf-16-be", "replace"))
    if _has_binary(head):
        return None
    try:
        return head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return None
        return head[: error.start].decode("utf-8-sig")  # a character cut in two by the end


def _disguised_markup(head: bytes) -> str | None:
    """Return the kind of markup that bytes begin with, although there is binary data in them.

    Browsers look for markup before they look for binary data (WHATWG MIME Sniffing section 7.1).
    """
    encoding = {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}.get(head[:2], "latin-1")
    start = head.decode(encoding, "replace").lstrip("\ufeff\xef\xbb\xbf \t\n\f\r")
    if not start.startswith("<"):
        return None
    found = _markup_type(start)
    return None if found == media_types.TEXT else found


def _plain(text: str) -> str | None:
    """Return decoded UTF-16 if it reads as text: no control characters, few unknown ones."""
    if any(chr(code) in text for code in _BINARY) or text.count("\ufffd") > 1:
        return None
    return text


def _has_binary(head: bytes) -> bool:
    return head.translate(None, _BINARY) != head


def _kind_of_text(text: str, whole: bool, claims: Sequence[str]) -> str:
    found = _text_type(text)
    if found == media_types.TEXT:
        return _claimed_text(text, whole, claims)
    return _claimed_markup(found, claims)


def _claimed_markup(found: str, claims: Sequence[str]) -> str:
    if found == media_types.XML:
        return next((claim for claim in claims if _is_vocabulary(claim)), media_types.XML)
    if found == media_types.XHTML and media_types.HTML in claims:
        return media_types.HTML  # most pages written as XML are served, and read, as HTML
    return found


def _is_vocabulary(claim: str) -> bool:
    """Return whether a type is XML recognised only by its declaration or root element."""
    return claim.endswith("+xml") and claim not in (media_types.SVG, media_types.XHTML)


def _text_type(text: str) -> str:
    start = text.lstrip("\ufeff \t\n\f\r")
    for signature, media_type in _TEXT_SIGNATURES:
        if start.startswith(signature):
            return media_type
    if re.match(r"P[1-6][ \t\n\r#]+[#0-9]", text):
        return f"image/x-portable-{_NETPBM[text[1]]}"
    if start.startswith("<"):
        return _markup_type(start)
    if script := _SCRIPTS.match(start[:_MAX_FIRST_LINE]):
        return {"python": "text/x-python", "php": "text/x-php"}.get(script[1], "text/x-shellscript")
    return media_types.TEXT


def _markup_type(text: str) -> str:
    """Return the type of a text that begins with `<`, from its prolog and first element."""
    at, is_xml, commented, doctype = 0, False, False, ""
    while match := _PROLOG.match(text, at):
        if match["php"]:
            return "text/x-php"
        if match["xml"]:
            is_xml = True
            at = max(text.find("?>", at) + 2, match.end())
            continue
        commented = commented or match["comment"] is not None
        doctype = (match["doctype"] or doctype).lower()
        at = match.end()
    root = _ROOT.match(text, at)
    name = root[1].lower() if root else ""
    if name == "svg" or doctype == "svg":
        return media_types.SVG
    if is_xml:
        is_page = name == "html" or doctype == "html" or (root and _XHTML_NAMESPACE in root[2])
        return media_types.XHTML if is_page else media_types.XML
    if name in _HTML_TAGS or doctype == "html":
        return media_types.HTML
    if doctype or (root and (commented or "xmlns" in root[2])):
        return media_types.XHTML if root and _XHTML_NAMESPACE in root[2] else media_types.XML
    return media_types.HTML if commented else media_types.TEXT


def _claimed_text(text: str, whole: bool, claims: Sequence[str]) -> str:
    """Return the kind of text that a claim names, if the text is plausible as that kind."""
    for claim in claims:
        if (
            media_types.is_text(claim)
            and claim != media_types.TEXT
            and _is_plausible(text, whole, claim)
        ):
            return claim
    if not any(media_types.is_text(claim) for claim in claims) and _is_json(
        text, whole, _CONTAINER_START
    ):
        return media_types.JSON
    return media_types.TEXT


_CONTAINER_START = "{["


def _is_plausible(text: str, whole: bool, claim: str) -> bool:
    if claim in (media_types.SVG, media_types.XHTML, "text/calendar", "text/vcard"):
        return False  # they are found by their content
    if claim == _NDJSON:
        return _is_ndjson(text, whole)
    if claim == media_types.JSON or claim.endswith("+json"):
        return _is_json(text, whole, "" if whole else _CONTAINER_START)
    if claim == media_types.XML or claim.endswith("+xml"):
        return text.lstrip("\ufeff \t\n\f\r").startswith("<")
    if claim == "message/rfc822":
        return re.match(r"(?:From |[!-9;-~]+:)", text) is not None
    if claim in _TABLES:
        return _is_table(text, whole, _TABLES[claim])
    return True


def _is_json(text: str, whole: bool, starts: str) -> bool:
    """Return whether a text is JSON (RFC 8259), or its beginning, where there is more of it."""
    text = text.strip("\ufeff \t\n\r")
    if not text or (starts and text[0] not in starts):
        return False
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        # What is wrong must be that the text ends: in a string, or within the last token.
        return not whole and (error.msg.startswith("Unterminated") or error.pos >= len(text) - 8)
    except RecursionError:
        return False
    return True


def _is_ndjson(text: str, whole: bool) -> bool:
    lines = text.strip("\ufeff").splitlines()
    checked = (lines if whole else lines[:-1])[:200]
    return bool(checked) and all(_is_json(line, True, "") for line in checked if line.strip())


def _is_table(text: str, whole: bool, delimiters: str) -> bool:
    """Return whether most rows have the same number of columns, as RFC 4180 requires of all.

    Titles and totals around a table are common, and so are rows that end before the last column.
    A table of one column has no delimiter anywhere.
    """
    lines = text.lstrip("\ufeff").splitlines(keepends=True)
    lines = (lines if whole else lines[:-1])[:200]
    for delimiter in delimiters:
        try:
            widths = [len(row) for row in csv.reader(lines, delimiter=delimiter) if row]
        except csv.Error:
            continue
        if not widths:
            continue
        width, rows = Counter(widths).most_common(1)[0]
        if width > 1 and rows >= 0.6 * len(widths):
            return True
        if sum(1 < width <= widths[0] for width in widths) >= 0.9 * len(widths):
            return True
    filled = [line for line in lines if line.strip()]
    return len(filled) > 1 and not any(mark in line for line in filled for mark in delimiters)


def _container_type(head: bytes, second: bytes, size: int) -> str | None:
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return containers.zip_type(head, second)
    if head.startswith(containers.COMPOUND_SIGNATURE):
        return containers.compound_type(head, second)
    if head[4:8] == b"ftyp":
        return containers.iso_media_type(head, second)
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return containers.tiff_type(head)
    if head.startswith(b"\x1aE\xdf\xa3"):
        return containers.matroska_type(head)
    if head.startswith(b"\xca\xfe\xba\xbe") and unpack_from(">H", head, 6)[0] >= 45:
        return "application/java-vm"
    return None


def _riff_type(head: bytes, second: bytes, size: int) -> str | None:
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        kinds = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
        return kinds.get(head[8:12])
    if head[:2] == b"BM" and unpack_from("<I", head, 14)[0] in (12, 40, 52, 56, 64, 108, 124):
        return "image/bmp"
    return None


def _stream_type(head: bytes, second: bytes, size: int) -> str | None:
    """Return the type of streams that have no header, only frames that follow each other."""
    for packet, first in ((188, 0), (192, 4), (204, 0)):
        if _is_transport_stream(head, packet, first, 3):
            return "video/mp2t"
    start = len(head) - len(head.lstrip(b"\0"))  # cut and streamed files begin with padding
    if head.startswith(b"ID3") and len(head) >= 10:  # ID3v2.4 section 3.1: four times 7 bits
        a, b, c, d = head[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d)
        if head[start : start + 4] == b"fLaC":
            return "audio/flac"
        return _frames_type(head, start, 2) or "audio/mpeg"
    return _frames_type(head, start, 3)


def _late_stream_type(head: bytes) -> str:
    """Return the type of a stream that was cut, so that its first frame is not at its start."""
    for packet in (188, 192, 204):
        for first in range(packet):
            if _is_transport_stream(head, packet, first, 6):
                return "video/mp2t"
    at = head.find(b"\xff")
    while 0 <= at < _LATEST_FRAME:
        try:
            if found := _frames_type(head, at, 5):
                return found
        except IndexError:
            return media_types.UNKNOWN
        at = head.find(b"\xff", at + 1)
    return media_types.UNKNOWN


_LATEST_FRAME = 4096  # bytes before the first frame of a cut stream


def _is_transport_stream(head: bytes, packet: int, first: int, least: int) -> bool:
    """Return whether packets of this length begin with a sync byte each (ISO/IEC 13818-1)."""
    syncs = head[first : first + 8 * packet : packet]
    if len(syncs) < least or syncs.strip(b"\x47"):
        return False
    flags = head[first + 1 : first + 8 * packet : packet]  # no error is indicated
    return not any(flag & 0x80 for flag in flags)


def _frames_type(head: bytes, start: int, least: int) -> str | None:
    if head[start : start + 1] != b"\xff":
        return None
    if _frames(head, start, _adts_length, least):
        return "audio/aac"
    return "audio/mpeg" if _frames(head, start, _mpeg_audio_length, least) else None


def _frames(head: bytes, at: int, length_of: Callable[[bytes, int], int], least: int) -> bool:
    """Return whether so many frames of one kind follow each other without a gap."""
    kind = head[at + 1 : at + 2]
    for _ in range(least):
        if head[at + 1 : at + 2] != kind or at + 7 > len(head):
            return False
        if not (length := length_of(head, at)):
            return False
        at += length
    return True


# ISO/IEC 11172-3 and 13818-3, section 2.4.2.3: kbit/s by layer and bit rate index.
_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_SAMPLES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _mpeg_audio_length(head: bytes, at: int) -> int:
    """Return the length of an MPEG audio frame in bytes; 0 if there is none here."""
    second, third = head[at + 1], head[at + 2]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    rate, sample = third >> 4, third >> 2 & 3
    if head[at] != 0xFF or second < 0xE0 or version == 1 or layer == 4:
        return 0
    if not 1 <= rate <= 14 or sample == 3:
        return 0
    family = 1 if version == 3 else 2
    bits = 1000 * _RATES[family, layer if family == 1 or layer == 1 else 2][rate - 1]
    hertz, padding = _SAMPLES[version][sample], third >> 1 & 1
    if layer == 1:
        return 4 * (12 * bits // hertz + padding)
    return (72 if family == 2 and layer == 3 else 144) * bits // hertz + padding


def _adts_length(head: bytes, at: int) -> int:
    """Return the length of an ADTS frame (ISO/IEC 13818-7, section 6.2); 0 if there is none."""
    if head[at] != 0xFF or head[at + 1] & 0xF6 != 0xF0 or head[at + 2] >> 2 & 15 > 12:
        return 0
    length = (head[at + 3] & 3) << 11 | head[at + 4] << 3 | head[at + 5] >> 5
    return length if length >= 7 else 0
