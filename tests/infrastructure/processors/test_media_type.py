from __future__ import annotations

import os
from typing import Any

import pytest

from application.pipeline import Permanent
from tests.infrastructure.processors.bench import perform
from tests.infrastructure.processors.pictures import bomb, picture

PDF = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"


@pytest.mark.parametrize(
    ("content", "path", "declared", "sniffed"),
    [
        (b"", "empty.txt", "text/plain", "application/x-empty"),
        (b"plain words\n", "notes.txt", "text/plain", "text/plain"),
        ("Gr\u00fc\u00dfe \u2603\n".encode() * 9000, "gruss.txt", None, "text/plain"),
        (b"BM a note that begins like a bitmap", "note.txt", None, "text/plain"),
        (b"II*does not", "two.txt", None, "text/plain"),
        (b"id;name\n1;Ada\n", "table.csv", "text/csv", "text/plain"),
        (b'{"a": 1}', "a.json", "application/json", "text/plain"),
        (b"const x: number = 1;\n", "main.ts", "video/mp2t", "text/plain"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg", "image/svg+xml", "text/plain"),
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
    with pytest.raises(Permanent, match="this is no image/"):
        perform("media-type", content, path, media_type=declared)


def test_a_decompression_bomb_is_refused_before_anything_is_unpacked() -> None:
    with pytest.raises(Permanent, match="60000 x 60000 pixels are more than"):
        perform("media-type", bomb(), "small.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allow": ["image/*"]}, "not among image/"),
        ({"deny": ["application/pdf"]}, "are denied"),
        ({"strict": True}, "declared as text/plain"),
    ],
)
def test_a_pipeline_says_which_types_it_takes(options: Any, message: str) -> None:
    with pytest.raises(Permanent, match=message):
        perform("media-type", PDF, "paper.pdf", options, media_type="text/plain")


def test_an_image_under_the_name_of_another_format_passes_and_is_told() -> None:
    result, _ = perform("media-type", picture("JPEG"), "a.png", media_type="image/png")

    assert (result["sniffed"], result["agrees"]) == ("image/jpeg", False)
