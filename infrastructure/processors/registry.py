"""All processors that pipelines can name: our own, and those of installed packages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from typing import Any

import structlog

from application.pipeline import Processor
from infrastructure.processors.antivirus import AntivirusOptions, antivirus
from infrastructure.processors.archive import Archive, ArchiveOptions
from infrastructure.processors.checksum import ChecksumOptions, checksum
from infrastructure.processors.decoder_pool import DecoderPool
from infrastructure.processors.media_type import MediaTypeOptions, media_type
from infrastructure.processors.rehearse import RehearseOptions, rehearse
from infrastructure.processors.service import HttpOptions
from infrastructure.processors.thumbnail import Thumbnail, ThumbnailOptions

GROUP = "uptrail.processors"

_OWN = {
    "antivirus": AntivirusOptions,
    "archive": ArchiveOptions,
    "checksum": ChecksumOptions,
    "http": HttpOptions,
    "media-type": MediaTypeOptions,
    "rehearse": RehearseOptions,
    "thumbnail": ThumbnailOptions,
}

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_processors(http: Processor | None = None) -> AsyncIterator[dict[str, Processor]]:
    """Processors by name, ready for use; what they keep running ends with the context.

    `http` is the one that asks services: it needs a way to hear them.
    """
    async with DecoderPool() as decoders:
        own: dict[str, Processor] = {
            "antivirus": antivirus,
            "archive": Archive(decoders),
            "checksum": checksum,
            "media-type": media_type,
            "rehearse": rehearse,
            "thumbnail": Thumbnail(decoders),
        }
        if http is not None:
            own["http"] = http
        yield {**installed(), **own}


def known_options() -> dict[str, Any]:
    """The type of the options by processor; None where an installed one does not say.

    It says so with an attribute `options`, which is a msgspec Struct.
    """
    others = {name: getattr(found, "options", None) for name, found in installed().items()}
    return {**others, **_OWN}


def installed() -> dict[str, Processor]:
    """Processors that other packages offer under the entry point group `uptrail.processors`.

    One that cannot be imported is left out, and logged: a pipeline that names it is then
    refused, with the list of those that are known.
    """
    found: dict[str, Processor] = {}
    for entry in entry_points(group=GROUP):
        try:
            found[entry.name] = entry.load()
        except Exception:
            _log.exception("processor_not_loaded", processor=entry.name, value=entry.value)
    return found
