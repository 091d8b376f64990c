from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from application.pipeline import PermanentError
from infrastructure.processors import media_type, thumbnail_child
from infrastructure.processors.media_types import OFFICE, RASTER, canonical
from infrastructure.processors.signatures import HEAD_BYTES, conclude, sniff
from tests.corpus import images
from tests.corpus.rows import ROWS
from tests.infrastructure.processors.pictures import bomb, picture
from tests.infrastructure.processors.step_context import perform

PREFIXES = [row.build()[:64] for row in ROWS if row.path.startswith(("a", "f", "l", "m", "s"))]
PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"


@pytest.mark.parametrize(
    ("content", "path", "declared", "sniffed"),
    [
        (b"", "empty.txt", "text/plain", "application/x-empty"),
        (b"plain words\n", "notes.txt", "text/plain", "text/plain"),
        ("Gr\u00fc\u00dfe \u2603\n".encode() * 9000, "gruss.txt", None, "text/plain"),
        (b"BM a note that begins like a bitmap", "note.txt", None, "text/plain"),
        (b"II*does not", "two.txt", None, "text/plain"),
        (b"id;name\n1;Ada\n", "table.csv", "text/csv", "text/csv"),
        (b'{"a": 1}', "a.json", "application/json", "application/json"),
        (b"const x: number = 1;\n", "main.ts", "video/mp2t", "text/plain"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg", "image/svg+xml", "image/svg+xml"),
        (PDF, "paper.pdf", "application/pdf", "application/pdf"),
        (b"PK\x03\x04" + bytes(60), "report.docx", "application/vnd.ms-word", "application/zip"),
        (os.urandom(4096) + b"\x00", "random.bin", "application/octet-stream", None),
    ],
)
def test_ordinary_files_pass(
    content: bytes, path: str, declared: str | None, sniffed: str | None
) -> None:
    result, _ = perform("media-type", content, path, media_type=declared)

    assert sniffed in (None, result["sniffed"])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_the_pixels_of_an_image_are_read_from_its_header(format: str) -> None:
    result, _ = perform("media-type", picture(format, (300, 200)), f"a.{format.lower()}")

    assert result["sniffed"] == f"image/{format.lower()}"
    assert (result["width"], result["height"]) == (300, 200)


@pytest.mark.parametrize(
    ("content", "path", "declared"),
    [
        (b"", "photo.png", None),
        (b"", "upload", "image/jpeg"),
        (b"<script>alert(1)</script>", "photo.jpg", None),
        (b"MZ" + bytes(100), "photo.gif", "image/gif"),
    ],
)
def test_bytes_that_only_pose_as_an_image_are_refused_for_good(
    content: bytes, path: str, declared: str | None
) -> None:
    with pytest.raises(PermanentError, match="this is no image/"):
        perform("media-type", content, path, media_type=declared)


def test_a_decompression_bomb_is_refused_before_anything_is_unpacked() -> None:
    with pytest.raises(PermanentError, match="60000 x 60000 pixels are more than"):
        perform("media-type", bomb(), "small.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": ["image/*"]}, "not among image/"),
        ({"deny": ["application/pdf"]}, "are denied"),
        ({"strict": True}, "declared as text/plain"),
    ],
)
def test_a_pipeline_accepts_only_its_types(options: Any, message: str) -> None:
    with pytest.raises(PermanentError, match=message):
        perform("media-type", PDF, "paper.pdf", options, media_type="text/plain")


def test_an_image_named_as_another_format_passes_with_a_note() -> None:
    result, _ = perform("media-type", picture("JPEG"), "a.png", media_type="image/png")

    assert (result["sniffed"], result["agrees"]) == ("image/jpeg", False)


ALIASES = {
    "image/jpeg": ("image/jpg", "image/pjpeg", "IMAGE/JPG; q=1"),
    "image/png": ("image/x-png", "image/apng"),
    "image/bmp": ("image/x-bmp", "image/x-ms-bmp"),
    "image/tiff": ("image/tif", "image/x-tiff"),
    "image/vnd.microsoft.icon": ("image/x-icon", "image/ico"),
    "image/jp2": ("image/jpx", "image/jpeg2000"),
    "image/heic": ("image/heif",),
    "audio/wav": ("audio/x-wav", "audio/wave", "audio/vnd.wave"),
    "audio/mpeg": ("audio/mp3", "audio/x-mp3", "audio/x-mpeg", "audio/mpeg3"),
    "audio/mp4": ("audio/m4a", "audio/x-m4a"),
    "audio/flac": ("audio/x-flac",),
    "audio/ogg": ("application/ogg", "audio/opus", "audio/x-ogg"),
    "audio/aac": ("audio/x-aac", "audio/aacp"),
    "audio/midi": ("audio/mid", "audio/x-midi"),
    "audio/aiff": ("audio/x-aiff",),
    "video/x-msvideo": ("video/avi", "video/vnd.avi"),
    "video/matroska": ("video/x-matroska",),
    "video/mp4": ("application/mp4", "video/x-m4v"),
    "video/quicktime": ("video/mp4",),
    "video/mp2t": ("video/mpeg", "video/MP2T"),
    "video/x-ms-asf": ("video/x-ms-wmv", "application/vnd.ms-asf"),
    "application/zip": ("application/x-zip-compressed", "application/x-zip"),
    "application/gzip": ("application/x-gzip", "application/x-tgz"),
    "application/x-bzip2": ("application/x-bzip", "application/bzip2"),
    "application/vnd.rar": ("application/x-rar-compressed", "application/x-rar"),
    "application/x-tar": ("application/tar", "application/x-gtar"),
    "application/pdf": ("application/x-pdf", "application/octet-stream"),
    "application/rtf": ("text/rtf", "application/x-rtf"),
    "application/msword": ("application/vnd.ms-word",),
    "application/vnd.ms-excel": ("application/msexcel", "application/x-msexcel"),
    "application/xml": ("text/xml",),
    "application/json": ("text/json", "text/plain"),
    "text/javascript": ("application/javascript", "application/x-javascript"),
    "text/csv": ("application/csv", "text/x-csv", "application/vnd.ms-excel", "text/plain"),
    "text/markdown": ("text/x-markdown", "text/plain"),
    "text/html": ("text/html; charset=utf-8",),
    "font/woff": ("application/font-woff", "application/x-font-woff"),
    "font/ttf": ("font/sfnt", "application/x-font-ttf"),
    "application/vnd.microsoft.portable-executable": ("application/x-msdownload",),
}
SAMPLES = {row.type: row for row in reversed(ROWS) if row.media_type == "ok"}


@pytest.mark.parametrize(("media_type", "aliases"), ALIASES.items())
def test_a_type_goes_by_all_of_its_names(media_type: str, aliases: tuple[str, ...]) -> None:
    row = SAMPLES[media_type]
    content = row.build()

    for declared in (media_type, *aliases):
        options = {"strict": True}
        result, _ = perform("media-type", content, row.path, options, media_type=declared)
        assert result["agrees"]
    for name in (media_type, *aliases):
        if canonical(name) == media_type:
            perform("media-type", content, row.path, {"allow": [name]}, media_type=media_type)
            with pytest.raises(PermanentError, match="are denied"):
                perform("media-type", content, row.path, {"deny": [name]}, media_type=media_type)


@pytest.mark.parametrize(
    ("path", "allow", "denied"),
    [
        ("letter.docx", OFFICE + "wordprocessingml.document", "letter.odt"),
        ("table.xlsx", OFFICE + "spreadsheetml.*", "letter.docx"),
        ("letter.odt", "application/vnd.oasis.*", "book.epub"),
        ("book.epub", "application/epub+zip", "plain.zip"),
        ("tool.jar", "application/java-archive", "app.apk"),
        ("app.apk", "application/vnd.android.package-archive", "tool.jar"),
        ("letter.doc", "application/msword", "table.xls"),
        ("mail.msg", "application/vnd.ms-outlook", "letter.doc"),
        ("letter.docx", "application/zip", "letter.doc"),
        ("table.csv", "text/csv", "notes.txt"),
        ("data.json", "application/json", "table.csv"),
        ("data.json", "application/json", "script.js"),
        ("data.json", "text/plain", "page.html"),
        ("table.csv", "text/*", "plain.png"),
        ("bare.mp3", "audio/*", "film.mp4"),
        ("tv.ts", "video/*", "bare.mp3"),
        ("IMG_0001.HEIC", "image/*", "film.mp4"),
        ("notes.txt", "text/plain", "script.txt"),
        ("notes.txt", "text/plain", "script.svg"),
        ("plain.jpg", "image/*", "paper.pdf"),
    ],
)
def test_a_type_is_allowed_by_name_and_others_are_not(path: str, allow: str, denied: str) -> None:
    rows = {row.path: row for row in ROWS}
    good, bad = rows[path], rows[denied]

    perform("media-type", good.build(), path, {"allow": [allow]}, media_type=good.declared)
    for named in (denied, path):  # also under the name and declaration of the good one
        declared = bad.declared if named == denied else good.declared
        with pytest.raises(PermanentError, match=r"are not among|this is no image"):
            perform("media-type", bad.build(), named, {"allow": [allow]}, media_type=declared)


def test_types_kept_in_a_container_are_denied_with_the_container() -> None:
    rows = {row.path: row for row in ROWS}

    for path in ("letter.docx", "letter.odt", "book.epub", "tool.jar", "app.apk", "plain.zip"):
        with pytest.raises(PermanentError, match="application/zip are denied"):
            perform("media-type", rows[path].build(), path, {"deny": ["application/zip"]})


SCRIPT = "<script>alert(1)</script>"
PAGES = {
    "script": SCRIPT,
    "upper case": SCRIPT.upper(),
    "space": f"\n\t \r\n{SCRIPT}",
    "form feed": f"\f{SCRIPT}",
    "comment": f"<!-- a -- b --> \n<!---->{SCRIPT}",
    "unclosed comment": f"<!-- {SCRIPT}",
    "doctype": f"<!doctype HTML>{SCRIPT}",
    "image": "<img src=x onerror=alert(1)>",
    "attribute": "<body onload=alert(1)>",
    "frame": "<iframe srcdoc='a'></iframe>",
    "xhtml": f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml">{SCRIPT}</html>',
    "xhtml doctype": f'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C" "a.dtd">\n{SCRIPT}',
    "prefixed xhtml": '<?xml version="1.0"?><x:html xmlns:x="http://www.w3.org/1999/xhtml"/>',
    "xml with a page": (
        '<?xml version="1.0"?><a><s:script xmlns:s="http://www.w3.org/1999/xhtml">1</s:script></a>'
    ),
    "xml with a stylesheet": '<?xml version="1.0"?><?xml-stylesheet href="a.xsl"?><a/>',
    "svg": f"<svg xmlns='http://www.w3.org/2000/svg'>{SCRIPT}</svg>",
    "svg after a comment": f"<!-- by hand --><svg>{SCRIPT}</svg>",
    "svg with a doctype": "<?xml version='1.0'?><!DOCTYPE svg [<!ENTITY a 'b'>]><svg>&a;</svg>",
    "svg handler": "<svg onload='alert(1)'/>",
    "svg link": "<svg><a href='javascript:alert(1)'>a</a></svg>",
    "svg far away": f"<svg>{' ' * 150_000}{SCRIPT}</svg>",
    "php": "<?php system($_GET['a']); ?>",
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1")


@pytest.mark.parametrize("name", PAGES)
def test_scripts_do_not_pass_as_plain_text_where_pages_are_denied(name: str) -> None:
    for encoding in ENCODINGS:
        content = PAGES[name].encode(encoding)
        deny = ["text/html", "text/x-php"]
        with pytest.raises(PermanentError, match="are denied"):
            perform("media-type", content, "a.txt", {"deny": deny}, media_type="text/plain")
        with pytest.raises(PermanentError, match="are not among text/plain"):
            perform("media-type", content, "a.txt", {"allow": ["text/plain"]})


@pytest.mark.parametrize(
    ("path", "declared"), [("a.html", None), ("a.txt", "text/html"), ("a.HTM", "text/plain")]
)
def test_text_that_is_declared_or_named_as_a_page_is_one(path: str, declared: str | None) -> None:
    with pytest.raises(PermanentError, match="text/html are denied"):
        perform("media-type", b"words", path, {"deny": ["text/html"]}, media_type=declared)


@pytest.mark.parametrize(
    ("content", "path"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'><path d='M0 0'/></svg>", "a.svg"),
        (b"<?xml version='1.0'?><order><on>1</on></order>", "a.xml"),
        (b"a < b, and <script is not closed", "a.txt"),
        (b"# Notes\n\nUse `<script>` with care.\n", "a.md"),
        (b"\x89PNG\r\n\x1a\n<html>", "a.bin"),
    ],
)
def test_files_without_scripts_pass_where_pages_are_denied(content: bytes, path: str) -> None:
    perform("media-type", content, path, {"deny": ["text/html"]})


@pytest.mark.parametrize(
    ("content", "declared", "sniffed"),
    [
        (b"words, not a table; at all\nmore words\nand, so, on, and, on\n" * 9, "text/csv", None),
        (b"a,b\n1,2\n" * 20_000, "text/csv", "text/csv"),
        (b"id\n1\n2\n", "text/csv", "text/csv"),
        (b'{"a": 1', "application/json", None),
        (b'{"a": 1}}', "application/json", None),
        (b'"words"', "application/json", "application/json"),
        (b"[" + b'{"a": "' + b"b" * 90_000 + b'"}]', "application/json", "application/json"),
        (b"[" * 100_000, "application/json", None),
        (b'{"type": "Point"}', "application/geo+json", "application/geo+json"),
        (b'{"a": 1}\nnot json\n', "application/x-ndjson", None),
        (b"words", "application/xml", None),
        (b"<note>words</note>", "application/xml", "application/xml"),
        (b'{"a": 1}', "application/octet-stream", "application/json"),
        (b"a: 1\n", "application/yaml", "application/yaml"),
    ],
)
def test_a_declared_text_type_is_accepted_for_text_of_that_kind(
    content: bytes, declared: str, sniffed: str | None
) -> None:
    result, _ = perform("media-type", content, "data", media_type=declared)

    assert result["sniffed"] == (sniffed or "text/plain")


def test_a_page_is_not_what_was_declared_as_text() -> None:
    for content in (SCRIPT.encode(), b"<svg/>"):
        with pytest.raises(PermanentError, match="declared as text/plain: its bytes are"):
            perform("media-type", content, "a.txt", {"strict": True}, media_type="text/plain")


@pytest.mark.parametrize(
    ("path", "declared", "agrees"),
    [
        ("plain.zip", OFFICE + "wordprocessingml.document", False),
        ("plain.zip", "application/epub+zip", False),
        ("table.xlsx", OFFICE + "wordprocessingml.document", False),
        ("letter.docx", OFFICE + "wordprocessingml.template", True),
        ("letter.docx", "application/zip", True),
        ("plain.zip", "application/java-archive", True),
        ("other.ole", "application/msword", True),
        ("IMG_0001.HEIC", "image/jpeg", False),
        ("plain.jpg", "image/png", False),
    ],
)
def test_a_strict_pipeline_accepts_only_the_declared_type(
    path: str, declared: str, agrees: bool
) -> None:
    content = next(row for row in ROWS if row.path == path).build()
    result, _ = perform("media-type", content, "upload", media_type=declared)

    assert result["agrees"] is agrees
    if not agrees:
        with pytest.raises(
            PermanentError, match=f"declared as {re.escape(declared)}: its bytes are"
        ):
            perform("media-type", content, "upload", {"strict": True}, media_type=declared)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "ICO"])
def test_the_limit_of_pixels_holds_for_every_format_a_thumbnail_is_made_of(format: str) -> None:
    sizes = {"sizes": [(200, 100)]} if format == "ICO" else {}
    content = images.picture(format, size=(200, 100), **sizes)

    perform("media-type", content, "picture", {"max_pixels": 20_000})
    with pytest.raises(PermanentError, match="200 x 100 pixels are more than 19999"):
        perform("media-type", content, "picture", {"max_pixels": 19_999})


@pytest.mark.parametrize("build", [images.tiff_bomb, images.jpeg_app_bomb, images.png_bomb])
def test_pixels_are_counted_at_the_ends_of_a_picture_that_is_too_large_to_copy(
    build: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = build() + bytes(1000)
    monkeypatch.setattr(media_type, "MAX_COPY_BYTES", len(content) - 500)
    with pytest.raises(PermanentError, match="60000 x 60000 pixels are more than"):
        perform("media-type", content, "large")


def test_every_format_a_thumbnail_is_made_of_has_a_bomb_in_the_corpus() -> None:
    bombs = {row.type for row in ROWS if row.media_type.endswith("pixels are more than")}

    assert bombs | {"image/vnd.microsoft.icon", "image/j2c"} == set(RASTER.values())
    assert set(thumbnail_child.FORMATS) == set(RASTER.values())


def test_an_image_that_cannot_be_measured_passes_with_the_reason() -> None:
    result, _ = perform("media-type", picture("PNG")[:20], "a.png")

    assert "width" not in result
    assert "it cannot be read" in result["unmeasured"] or "no image" in result["unmeasured"]


def test_hostile_text_is_sniffed_in_no_time() -> None:
    for piece in (
        "<!--",
        "<?",
        "<!doctype a [",
        "#!a -",
        "[",
        '{"',
        '"a,',
        "<a ",
        "P1 ",
        "\n",
        ":",
    ):
        content = (piece * HEAD_BYTES)[:HEAD_BYTES].encode()
        begun = time.process_time()
        for claim in ("text/csv", "application/json", "application/xml", "message/rfc822"):
            sniff(content, b"", HEAD_BYTES * 2, [claim])
        assert time.process_time() - begun < 2.0


@settings(deadline=None)
@given(st.binary(max_size=300), st.sampled_from(PREFIXES), st.binary(max_size=300))
def test_any_bytes_have_a_type_or_none(more: bytes, prefix: bytes, second: bytes) -> None:
    content = prefix + more
    found = sniff(content, second, len(content) + len(second), ["text/csv"])

    assert found is None or "/" in found
    assert "/" in conclude("application/octet-stream", content, len(content))
