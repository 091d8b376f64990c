"""`thumbnail`: a small WebP picture of an image, made where a hostile file can do no harm."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from application.pipeline import Permanent, Subject, Workbench
from infrastructure.processors.helpers import Helpers
from infrastructure.processors.sniffing import RASTER, raster_type, sniff

MIB = 1024 * 1024

ARTIFACT = "thumbnail.webp"
SIDE = 320  # pixels of the longer side
QUALITY = 80
MAX_PIXELS = 100_000_000
MAX_SOURCE = 256 * MIB
MAX_RESULT = 2 * MIB
MEMORY = 1024 * MIB
SECONDS = 20  # of processor time


class ImageBroken(Permanent):
    """The image cannot be read: truncated, malformed, or not an image at all."""


class ImageBeyondLimits(Permanent):
    """The image takes more memory or time than it is given."""


class ThumbnailFailed(Exception):
    """The process that makes thumbnails was ended by something else than the image."""


class Thumbnail:
    """The processor, with the processes it keeps ready; `helpers` are closed by their owner.

    Options: `side` in pixels, `quality` 1 to 100, `max_pixels`, `max_bytes` of the file,
    `memory` in bytes, `seconds` of processor time.
    """

    def __init__(self, helpers: Helpers) -> None:
        self._helpers = helpers

    async def __call__(
        self, subject: Subject, bench: Workbench, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the size of the thumbnail, or `{"skipped": why}` for what is no image."""
        expected = raster_type(subject.path, subject.media_type)
        sniffed = await _sniffed(subject, bench)
        if sniffed not in RASTER.values() and (expected is None or sniffed.startswith("image/")):
            return {"skipped": f"no picture can be made of {sniffed}"}
        if subject.size == 0:
            raise ImageBroken(f"an empty file is no {expected}")
        most = int(options.get("max_bytes", MAX_SOURCE))
        if subject.size > most:
            return {"skipped": f"larger than {most} bytes"}
        with TemporaryDirectory(prefix="uptrail-thumbnail-") as folder:
            return await self._make(bench, Path(folder), options)

    async def _make(
        self, bench: Workbench, folder: Path, options: dict[str, Any]
    ) -> dict[str, Any]:
        source, target = folder / "source", folder / "target"
        await _copy(bench, source)
        answer = await self._helpers.ask(_order(source, target, options))
        if reason := answer.get("broken"):
            raise ImageBroken(reason)
        if reason := answer.get("limit"):
            raise ImageBeyondLimits(reason)
        if reason := answer.get("failed"):
            raise ThumbnailFailed(reason)
        picture = target.read_bytes()
        await bench.attach(ARTIFACT, picture)
        (width, height), (full_width, full_height) = answer["made"], answer["of"]
        return {
            "width": width,
            "height": height,
            "bytes": len(picture),
            "of": {"width": full_width, "height": full_height},
        }


def _order(source: Path, target: Path, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "source": str(source),
        "target": str(target),
        "side": int(options.get("side", SIDE)),
        "quality": int(options.get("quality", QUALITY)),
        "pixels": int(options.get("max_pixels", MAX_PIXELS)),
        "memory": int(options.get("memory", MEMORY)),
        "seconds": int(options.get("seconds", SECONDS)),
        "bytes": MAX_RESULT,
    }


async def _sniffed(subject: Subject, bench: Workbench) -> str:
    """What the `media-type` step found, if the pipeline has one, else a look of our own."""
    for result in subject.results.values():
        if isinstance(found := result.get("sniffed"), str):
            return found
    head = b""
    async for chunk in bench.read(0, 64):
        head += chunk
    return sniff(head)


async def _copy(bench: Workbench, target: Path) -> None:
    """The child must be able to seek; a file also keeps the image out of this process's memory."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        async for chunk in bench.read():
            await asyncio.to_thread(os.write, descriptor, chunk)
    finally:
        os.close(descriptor)
