from __future__ import annotations

import asyncio
import os
import signal
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

import infrastructure.processors.thumbnail as thumbnail
from application.pipeline import Permanent
from infrastructure.processors.decoder_pool import DecoderLost, DecoderPool
from tests.infrastructure.processors.bench import Table, perform, subject
from tests.infrastructure.processors.pictures import bomb, picture
from tests.support import eventually, run

SMALL = picture("PNG")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_an_image_gets_a_small_picture(format: str) -> None:
    result, table = perform("thumbnail", picture(format), f"photos/a.{format.lower()}")

    assert (result["width"], result["height"]) == (320, 240)
    assert result["of"] == {"width": 640, "height": 480}
    with Image.open(BytesIO(table.attached["thumbnail.webp"])) as small:
        assert small.format == "WEBP"
        assert small.size == (320, 240)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16"])
def test_unusual_pixels_are_no_obstacle(mode: str) -> None:
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
def test_what_is_no_image_is_skipped_with_the_reason(
    content: bytes, path: str, declared: str | None
) -> None:
    result, table = perform("thumbnail", content, path, media_type=declared)

    assert "no picture can be made of" in result["skipped"]
    assert table.attached == {}


@pytest.mark.parametrize(
    ("content", "path", "reason"),
    [
        (picture("JPEG")[:3000], "cut.jpg", "truncated"),
        (picture("PNG")[:200], "cut.png", "truncated|broken|not enough"),
        (b"", "empty.png", "an empty file is no image/png"),
        (b"no picture", "posing.gif", "no image that can be read"),
        (bomb(), "bomb.png", "60000 x 60000 pixels are more than"),
    ],
)
def test_a_broken_image_fails_for_good_with_the_reason(
    content: bytes, path: str, reason: str
) -> None:
    with pytest.raises(Permanent, match=reason):
        perform("thumbnail", content, path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"memory": 150 * 1024 * 1024}, "more than .* bytes of memory"),
        ({"seconds": 0}, "more than 0 s of processor time"),
    ],
)
def test_an_image_that_wants_too_much_fails_for_good_with_the_reason(
    options: Any, reason: str
) -> None:
    with pytest.raises(Permanent, match=reason):
        perform("thumbnail", picture("PNG", (9000, 9000)), "large.png", options)


def test_a_decoder_process_that_is_killed_at_work_is_reported_and_replaced() -> None:
    async def story() -> None:
        large = picture("PNG", (9000, 9000))
        async with DecoderPool(most=1) as decoders:
            processor = thumbnail.Thumbnail(decoders)
            killed = asyncio.create_task(processor(subject(large, "a.png"), Table(large), {}))
            server = next(iter(await eventually(lambda: set(decoders.busy))))
            os.killpg(server.process.pid, signal.SIGKILL)

            with pytest.raises(DecoderLost):
                await killed
            result = await processor(subject(SMALL, "a.png"), Table(SMALL), {})

        assert result["width"] == 320

    run(story())


def test_a_decoder_process_that_is_killed_while_idle_is_replaced() -> None:
    async def story() -> None:
        async with DecoderPool(most=1) as decoders:
            processor = thumbnail.Thumbnail(decoders)
            await processor(subject(SMALL, "a.png"), Table(SMALL), {})
            (server,) = decoders.free
            os.kill(server.process.pid, signal.SIGKILL)
            await eventually(lambda: server.process.returncode is not None)

            result = await processor(subject(SMALL, "a.png"), Table(SMALL), {})

        assert result["width"] == 320

    run(story())


def test_a_step_that_is_stopped_leaves_no_process_behind() -> None:
    async def story() -> None:
        large = picture("PNG", (9000, 9000))
        async with DecoderPool(most=1) as decoders:
            processor = thumbnail.Thumbnail(decoders)
            stopped = asyncio.create_task(processor(subject(large, "a.png"), Table(large), {}))
            server = next(iter(await eventually(lambda: set(decoders.busy))))
            stopped.cancel()
            await asyncio.wait((stopped,))

            with pytest.raises(ProcessLookupError):
                os.killpg(server.process.pid, 0)

    run(story())
