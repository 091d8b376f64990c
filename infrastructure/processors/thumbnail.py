"""`thumbnail`: a small WebP picture of an image, made in the sandbox.

A thumbnail is an optional result: whatever keeps it from being made is the reason of a skipped step
and never an error. Files that are not what they claim to be are for `media-type` to refuse.
"""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from zlib import crc32

from msgspec import Meta

from application.errors import StorageFull
from application.pipeline import StepContext, StepInput
from infrastructure.processors.decoder_pool import DecoderLimits, DecoderLost, DecoderPool
from infrastructure.processors.input_file import copy_to_file
from infrastructure.processors.media_types import RASTER
from infrastructure.processors.options import Options, parse_options
from infrastructure.processors.signatures import sniff

MIB = 1024 * 1024

MAKE = "infrastructure.processors.thumbnail_child:make"
STEP = "thumbnail"
MAX_SIDE_PIXELS = 320  # pixels of the longer side
WEBP_QUALITY = 80
MAX_PIXELS = 250_000_000  # phones have sensors of 200 megapixels
MAX_SOURCE_BYTES = 256 * MIB
MAX_RESULT_BYTES = 2 * MIB
MAX_MEMORY_BYTES = 1024 * MIB
MAX_CPU_SECONDS = 20  # of processor time
MAX_TRIES = 2  # where the decoder's process ends for no reason that the image gives


class ThumbnailOptions(Options, frozen=True, kw_only=True):
    """`side` in pixels, `quality` 1 to 100, `max_bytes` of the file, `seconds` of processor time.

    `memory` is in bytes. An image beyond any of these limits gets no thumbnail.
    """

    side: Annotated[int, Meta(ge=1, le=4096)] = MAX_SIDE_PIXELS
    quality: Annotated[int, Meta(ge=1, le=100)] = WEBP_QUALITY
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_SOURCE_BYTES
    memory: int = MAX_MEMORY_BYTES
    seconds: int = MAX_CPU_SECONDS


class _Skipped(Exception):
    """The file gets no thumbnail; the message is the reason."""


class Thumbnail:
    """The processor; the caller that opened the pool of decoders closes it."""

    optional = True
    """Whether a step that does not end in time is skipped instead of failed."""

    def __init__(self, decoders: DecoderPool) -> None:
        self._decoders = decoders

    async def __call__(
        self, subject: StepInput, bench: StepContext, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the size of the thumbnail, or `{"skipped": reason}`. Raises BadOption."""
        chosen = parse_options(ThumbnailOptions, options)
        try:
            media_type = await _image_type(subject, bench)
            if subject.size > chosen.max_bytes:
                raise _Skipped(f"larger than {chosen.max_bytes} bytes")
            made, picture = await self._make(bench, media_type, chosen)
            await _attach(bench, subject.step or STEP, picture)
        except _Skipped as error:
            return {"skipped": str(error)}
        return made

    async def _make(
        self, bench: StepContext, media_type: str, chosen: ThumbnailOptions
    ) -> tuple[dict[str, Any], bytes]:
        """Return the result of the step and the picture; a lost decoder is replaced once."""
        reason = ""
        for _ in range(MAX_TRIES):
            try:
                with TemporaryDirectory(prefix="uptrail-thumbnail-") as folder:
                    return await self._decode(bench, Path(folder) / "source", media_type, chosen)
            except (DecoderLost, OSError) as error:
                reason = str(error) or type(error).__name__
        raise _Skipped(reason)

    async def _decode(
        self, bench: StepContext, source: Path, media_type: str, chosen: ThumbnailOptions
    ) -> tuple[dict[str, Any], bytes]:
        await copy_to_file(bench, source)
        limits = DecoderLimits(memory=chosen.memory, seconds=chosen.seconds, data=MAX_RESULT_BYTES)
        decoded = await self._decoders.run(MAKE, source, _order(media_type, chosen), limits)
        match decoded.answer:
            case {"made": [int(width), int(height)], "of": [int(full_width), int(full_height)]}:
                full = {"width": full_width, "height": full_height}
                size = len(decoded.data)
                return {"width": width, "height": height, "bytes": size, "of": full}, decoded.data
            case {"broken": str(reason)} | {"limit": str(reason)}:
                raise _Skipped(reason)
            case {"failed": str(reason)}:
                raise DecoderLost(reason)
        raise DecoderLost("the decoder's answer makes no sense")


def _order(media_type: str, chosen: ThumbnailOptions) -> dict[str, Any]:
    return {
        "type": media_type,
        "side": chosen.side,
        "quality": chosen.quality,
        "pixels": chosen.max_pixels,
        "bytes": MAX_RESULT_BYTES,
    }


async def _image_type(subject: StepInput, bench: StepContext) -> str:
    """Return the type that the `media-type` step found, or that our own rules find; or skip."""
    found = next(
        (name for r in subject.results.values() if isinstance(name := r.get("sniffed"), str)), None
    )
    if found is None:
        head = b"".join([chunk async for chunk in bench.read(0, 4096)])
        found = sniff(head, b"", subject.size) or "an unknown type"
    if found in RASTER.values():
        return found
    raise _Skipped(f"no picture can be made of {found}")


async def _attach(bench: StepContext, step: str, picture: bytes) -> None:
    """Attach the picture under the name of its step, so that two steps keep one each."""
    name = re.sub(r"[^a-z0-9-]+", "-", step.lower()).strip("-")[:64] or STEP
    if name != step:  # labels that look alike must not share a name
        name = f"{name}-{crc32(step.encode()):08x}"
    try:
        await bench.attach(f"{name}.webp", picture)
    except StorageFull as error:
        raise _Skipped(f"the thumbnail could not be stored: {error}") from None
