"""`thumbnail`: a small WebP picture of an image, made where a hostile file can do no harm."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from msgspec import Meta

from application.pipeline import Permanent, Subject, Workbench
from infrastructure.processors.copying import copy
from infrastructure.processors.decoder_pool import DecoderLimits, DecoderPool
from infrastructure.processors.options import Options, read
from infrastructure.processors.sniffing import RASTER, raster_type, sniff

MIB = 1024 * 1024

MAKE = "infrastructure.processors.thumbnail_child:make"
ARTIFACT = "thumbnail.webp"
SIDE = 320  # pixels of the longer side
QUALITY = 80
MAX_PIXELS = 100_000_000
MAX_SOURCE = 256 * MIB
MAX_RESULT = 2 * MIB
MEMORY = 1024 * MIB
SECONDS = 20  # of processor time


class ThumbnailOptions(Options, frozen=True, kw_only=True):
    """`side` in pixels, `quality` 1 to 100, `max_bytes` of the file, `seconds` of processor time.

    `memory` is in bytes.
    """

    side: Annotated[int, Meta(ge=1, le=4096)] = SIDE
    quality: Annotated[int, Meta(ge=1, le=100)] = QUALITY
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_SOURCE
    memory: int = MEMORY
    seconds: int = SECONDS


class ImageBroken(Permanent):
    """The image cannot be read: truncated, malformed, or not an image at all."""


class ImageBeyondLimits(Permanent):
    """The image takes more memory or time than it is given."""


class ThumbnailFailed(Exception):
    """The process that makes thumbnails was ended by something else than the image."""


class Thumbnail:
    """The processor; its pool of decoders is closed by whoever opened it."""

    def __init__(self, decoders: DecoderPool) -> None:
        self._decoders = decoders

    async def __call__(
        self, subject: Subject, bench: Workbench, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the size of the thumbnail, or `{"skipped": why}` for what is no image."""
        chosen = read(ThumbnailOptions, options)
        expected = raster_type(subject.path, subject.media_type)
        sniffed = await _sniffed(subject, bench)
        if sniffed not in RASTER.values() and (expected is None or sniffed.startswith("image/")):
            return {"skipped": f"no picture can be made of {sniffed}"}
        if subject.size == 0:
            raise ImageBroken(f"an empty file is no {expected}")
        if subject.size > chosen.max_bytes:
            return {"skipped": f"larger than {chosen.max_bytes} bytes"}
        with TemporaryDirectory(prefix="uptrail-thumbnail-") as folder:
            return await self._make(bench, Path(folder), chosen)

    async def _make(
        self, bench: Workbench, folder: Path, chosen: ThumbnailOptions
    ) -> dict[str, Any]:
        source = folder / "source"
        await copy(bench, source)
        limits = DecoderLimits(memory=chosen.memory, seconds=chosen.seconds, data=MAX_RESULT)
        decoded = await self._decoders.run(MAKE, source, _order(chosen), limits)
        answer, picture = decoded.answer, decoded.data
        if reason := answer.get("broken"):
            raise ImageBroken(reason)
        if reason := answer.get("limit"):
            raise ImageBeyondLimits(reason)
        if reason := answer.get("failed"):
            raise ThumbnailFailed(reason)
        await bench.attach(ARTIFACT, picture)
        (width, height), (full_width, full_height) = answer["made"], answer["of"]
        return {
            "width": width,
            "height": height,
            "bytes": len(picture),
            "of": {"width": full_width, "height": full_height},
        }


def _order(chosen: ThumbnailOptions) -> dict[str, Any]:
    return {
        "side": chosen.side,
        "quality": chosen.quality,
        "pixels": chosen.max_pixels,
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
