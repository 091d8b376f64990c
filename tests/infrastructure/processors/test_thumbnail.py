from __future__ import annotations

import asyncio
import os
import re
import signal
import struct
from functools import cache
from io import BytesIO
from typing import Any, TypeAlias

import pytest
from PIL import Image

import infrastructure.processors.thumbnail as thumbnail
from application.errors import StorageFull
from infrastructure.processors.decoder_pool import DecoderPool
from infrastructure.processors.registry import open_processors
from tests.corpus import images
from tests.infrastructure.processors.pictures import bomb, picture
from tests.infrastructure.processors.step_context import Table, perform, subject
from tests.support import eventually

SMALL = picture("PNG")

Colour: TypeAlias = tuple[int, int, int]


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    return images.encoded(image, format, **options)


def grey_32(value: float) -> bytes:
    return encoded(Image.new("F", (64, 48), value), "TIFF")


@cache
def large() -> bytes:
    return picture("PNG", (9000, 9000))


def thumbnail_of(content: bytes) -> Image.Image:
    """Return the thumbnail of an image whose type is detected from its bytes."""
    result, table = perform("thumbnail", content, "image")
    assert "skipped" not in result
    return Image.open(BytesIO(table.attached["thumbnail.webp"]))


def pixel(content: bytes, at: tuple[int, int] = (20, 20)) -> Any:
    return thumbnail_of(content).convert("RGB").getpixel(at)


def near(colour: Colour, by: int = 6) -> Any:
    """Equal to a colour except for the losses of compression."""
    return pytest.approx(colour, abs=by)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_an_image_gets_a_small_picture(format: str) -> None:
    result, table = perform("thumbnail", picture(format), f"photos/a.{format.lower()}")

    assert (result["width"], result["height"]) == (320, 240)
    assert result["of"] == {"width": 640, "height": 480}
    with Image.open(BytesIO(table.attached["thumbnail.webp"])) as small:
        assert small.format == "WEBP"
        assert small.size == (320, 240)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_unusual_pixel_formats_get_a_thumbnail(mode: str) -> None:
    result, _ = perform("thumbnail", picture("TIFF", mode=mode), "scan.tif")

    assert result["width"] == 320


@pytest.mark.parametrize(
    ("content", "path", "declared"),
    [
        (b"", "empty.txt", None),
        (b"words", "notes.txt", "text/plain"),
        (b"%PDF-1.7\n\xe2\xe3", "paper.pdf", "application/pdf"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.svg", "image/svg+xml"),
    ],
)
def test_a_file_that_is_no_image_is_skipped_with_the_reason(
    content: bytes, path: str, declared: str | None
) -> None:
    result, table = perform("thumbnail", content, path, media_type=declared)

    assert "no picture can be made of" in result["skipped"]
    assert table.attached == {}


@pytest.mark.parametrize(
    ("content", "path", "reason"),
    [
        (picture("JPEG")[:3000], "cut.jpg", "it cannot be read: image file is truncated"),
        (picture("PNG")[:200], "cut.png", "it cannot be read: "),
        (b"", "empty.png", "no picture can be made of application/x-empty"),
        (b"no picture", "posing.gif", "no picture can be made of text/plain"),
        (b"\0\1\2\3" * 99, "noise.png", "no picture can be made of an unknown type"),
        (bomb(), "bomb.png", "60000 x 60000 pixels are more than 250000000"),
        (grey_32(float("nan")), "nan.tif", "it has values that are no numbers"),
        (grey_32(float("inf")), "inf.tif", "it has values that are no numbers"),
    ],
)
def test_an_image_that_cannot_be_read_is_skipped_with_the_reason(
    content: bytes, path: str, reason: str
) -> None:
    result, table = perform("thumbnail", content, path)

    assert reason in result["skipped"]
    assert table.attached == {}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"memory": 150 * 1024 * 1024}, "more than .* bytes of memory"),
        ({"seconds": 0}, "more than 0 s of processor time"),
        ({"max_pixels": 1000}, "9000 x 9000 pixels are more than 1000"),
        ({"max_bytes": 1000}, "larger than 1000 bytes"),
    ],
)
def test_an_image_beyond_a_limit_is_skipped_with_the_reason(options: Any, reason: str) -> None:
    result, table = perform("thumbnail", large(), "large.png", options)

    assert re.search(reason, result["skipped"])
    assert table.attached == {}


def test_the_embedded_profile_decides_what_the_colours_of_a_thumbnail_are() -> None:
    red = Image.new("RGB", (64, 48), "red")
    swapped = encoded(red, "PNG", icc_profile=images.swapped_profile())
    broken = encoded(red, "PNG", icc_profile=b"no profile" * 20)

    assert pixel(swapped) == near((0, 0, 255))
    assert pixel(broken) == near((255, 0, 0))
    assert "icc_profile" not in thumbnail_of(swapped).info


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encoded(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
        (encoded(Image.new("CMYK", (64, 48), (0, 255, 255, 0)), "TIFF"), (255, 0, 0)),
        (encoded(Image.new("LAB", (64, 48), (255, 128, 128)), "TIFF"), (255, 255, 255)),
    ],
)
def test_colours_of_print_are_shown_as_they_look(content: bytes, expected: Colour) -> None:
    assert pixel(content) == near(expected, by=12)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (images.grey_16_full("PNG"), 130),
        (images.grey_16_full("TIFF"), 130),
        (images.big_endian_16_tiff(), 130),
        (images.grey_16("PNG", 40), 0),
        (grey_32(0.5), 128),
        (grey_32(100.0), 100),
        (grey_32(32_768), 128),
        (encoded(Image.new("I", (64, 48), 32_768), "TIFF"), 128),
        (encoded(Image.new("I", (64, 48), 77), "TIFF"), 77),
    ],
)
def test_deep_grey_is_scaled_and_not_clipped(content: bytes, expected: int) -> None:
    assert pixel(content, at=(32, 24)) == near((expected, expected, expected))


def test_grey_of_any_range_keeps_its_darkest_and_its_brightest_value() -> None:
    values = b"".join(struct.pack("<f", -1000.0 + 100 * (x // 2)) for x in range(64)) * 48
    content = encoded(Image.frombytes("F", (64, 48), values), "TIFF")

    assert pixel(content, at=(0, 24)) == near((0, 0, 0))
    assert pixel(content, at=(63, 24)) == near((255, 255, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_thumbnail_is_the_right_way_up(orientation: int) -> None:
    upright = Image.new("RGB", (64, 48), "black")
    upright.paste((255, 255, 255), (0, 0, 16, 12))  # a white corner at the top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    inverse |= {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180}
    inverse |= {4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE}
    inverse |= {7: Image.Transpose.TRANSVERSE}
    stored = upright.transpose(inverse[orientation]) if orientation > 1 else upright

    for format in ("JPEG", "PNG", "WEBP", "TIFF"):
        small = thumbnail_of(encoded(stored, format, exif=exif))
        assert small.size == (64, 48), format
        assert small.convert("RGB").getpixel((4, 4)) == near((255, 255, 255)), format
        assert small.convert("RGB").getpixel((56, 40)) == near((0, 0, 0)), format


def test_broken_exif_data_do_not_keep_a_thumbnail_from_being_made() -> None:
    broken = encoded(Image.new("RGB", (64, 48)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")

    assert thumbnail_of(broken).size == (64, 48)


@pytest.mark.parametrize(
    "content",
    [
        images.with_alpha("PNG"),
        images.with_alpha("WEBP"),
        images.transparent_palette("PNG"),
        images.transparent_palette("GIF"),
    ],
)
def test_transparency_is_kept(content: bytes) -> None:
    low, high = thumbnail_of(content).convert("RGBA").getchannel("A").getextrema()

    assert low < 10
    assert high > 245


def test_two_thumbnail_steps_keep_a_picture_each() -> None:
    small, _ = perform("thumbnail", SMALL, "a.png", {"side": 200}, step="thumbnail")
    _, table = perform("thumbnail", SMALL, "a.png", {"side": 400}, step="preview")
    _, odd = perform("thumbnail", SMALL, "a.png", step="Large one")

    assert small["width"] == 200
    assert list(table.attached) == ["preview.webp"]
    (name,) = odd.attached
    assert re.fullmatch(r"large-one-[0-9a-f]{8}\.webp", name)


async def test_a_thumbnail_that_finds_no_room_is_skipped_with_the_reason() -> None:
    class FullTable(Table):
        async def attach(self, name: str, content: bytes) -> None:
            raise StorageFull("no space left")

    async with open_processors() as processors:
        found = await processors["thumbnail"](subject(SMALL, "a.png"), FullTable(SMALL), {})

    assert "could not be stored: no space left" in found["skipped"]


async def test_a_decoder_process_that_is_killed_at_work_is_replaced_and_the_thumbnail_made() -> (
    None
):
    content = large()
    async with DecoderPool(most=1) as decoders:
        processor = thumbnail.Thumbnail(decoders)
        killed = asyncio.create_task(processor(subject(content, "a.png"), Table(content), {}))
        server = next(iter(await eventually(lambda: set(decoders.busy))))
        os.killpg(server.process.pid, signal.SIGKILL)

        result = await killed

    assert result["width"] == 320


async def test_a_decoder_process_that_is_killed_while_idle_is_replaced() -> None:
    async with DecoderPool(most=1) as decoders:
        processor = thumbnail.Thumbnail(decoders)
        await processor(subject(SMALL, "a.png"), Table(SMALL), {})
        (server,) = decoders.free
        os.kill(server.process.pid, signal.SIGKILL)
        await eventually(lambda: server.process.returncode is not None)

        result = await processor(subject(SMALL, "a.png"), Table(SMALL), {})

    assert result["width"] == 320


async def test_a_step_that_is_stopped_leaves_no_process_behind() -> None:
    content = large()
    async with DecoderPool(most=1) as decoders:
        processor = thumbnail.Thumbnail(decoders)
        stopped = asyncio.create_task(processor(subject(content, "a.png"), Table(content), {}))
        server = next(iter(await eventually(lambda: set(decoders.busy))))
        stopped.cancel()
        await asyncio.wait((stopped,))

        with pytest.raises(ProcessLookupError):
            os.killpg(server.process.pid, 0)
