"""All processors that pipelines can name: our own, and those of installed packages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path

import structlog

from application.pipeline import Processor
from infrastructure.processors.checksum import checksum
from infrastructure.processors.helpers import Helpers
from infrastructure.processors.media_type import media_type
from infrastructure.processors.rehearse import rehearse
from infrastructure.processors.thumbnail import Thumbnail

GROUP = "uptrail.processors"

_THUMBNAILS = Path(__file__).with_name("thumbnail_child.py")

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_processors() -> AsyncIterator[dict[str, Processor]]:
    """Processors by name, ready for use; what they keep running ends with the context."""
    async with Helpers(_THUMBNAILS) as helpers:
        own: dict[str, Processor] = {
            "checksum": checksum,
            "media-type": media_type,
            "thumbnail": Thumbnail(helpers),
            "rehearse": rehearse,
        }
        yield {**installed(), **own}


def installed() -> dict[str, Processor]:
    """Processors that other packages offer under the entry point group `uptrail.processors`.

    One that cannot be imported is left out, and logged: a pipeline that names it then fails
    with the list of those that are known.
    """
    found: dict[str, Processor] = {}
    for entry in entry_points(group=GROUP):
        try:
            found[entry.name] = entry.load()
        except Exception:
            _log.exception("processor_not_loaded", processor=entry.name, value=entry.value)
    return found
