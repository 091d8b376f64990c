"""All processors that pipelines can name: our own, and those of installed packages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from typing import Any

from application.pipeline import Processor
from infrastructure.processors.antivirus import AntivirusOptions, antivirus
from infrastructure.processors.archive import Archive, ArchiveOptions
from infrastructure.processors.checksum import ChecksumOptions, checksum
from infrastructure.processors.decoder_pool import DecoderPool
from infrastructure.processors.media_type import MediaType, MediaTypeOptions
from infrastructure.processors.rehearse import RehearseOptions, rehearse
from infrastructure.processors.service import HttpOptions
from infrastructure.processors.step_pool import StepPool, installed_problems
from infrastructure.processors.thumbnail import Thumbnail, ThumbnailOptions

GROUP = "uptrail.processors"
PROCESSES = 8
MEMORY = 1 << 30  # bytes

_OWN = {
    "antivirus": AntivirusOptions,
    "archive": ArchiveOptions,
    "checksum": ChecksumOptions,
    "http": HttpOptions,
    "media-type": MediaTypeOptions,
    "rehearse": RehearseOptions,
    "thumbnail": ThumbnailOptions,
}


@asynccontextmanager
async def open_processors(
    http: Processor | None = None, *, processes: int = PROCESSES, memory: int = MEMORY
) -> AsyncIterator[dict[str, Processor]]:
    """Processors by name, ready for use; what they keep running ends with the context.

    `http` is the one that calls services: it needs a way to receive their results. Steps of
    installed packages run in `processes` processes, each with at most `memory` bytes of memory.
    """
    async with DecoderPool() as decoders, StepPool(size=processes, memory=memory) as pool:
        own: dict[str, Processor] = {
            "antivirus": antivirus,
            "archive": Archive(decoders),
            "checksum": checksum,
            "media-type": MediaType(decoders),
            "rehearse": rehearse,
            "thumbnail": Thumbnail(decoders),
        }
        if http is not None:
            own["http"] = http
        yield {**{name: pool.processor(name) for name in installed()}, **own}


class InstalledOptions:
    """The options of an installed processor, which only a process of its own may ask it about."""

    def __init__(self, name: str) -> None:
        self._name = name

    def problem(self, options: dict[str, Any]) -> str:
        """What is wrong with these options, or with loading the processor; "" where nothing is.

        A processor declares its options in an attribute `options`, a msgspec Struct.
        """
        (found,) = installed_problems([(self._name, options)])
        return found


def known_options() -> dict[str, Any]:
    """What judges the options by processor: their type, or `InstalledOptions`."""
    return {**{name: InstalledOptions(name) for name in installed()}, **_OWN}


def installed() -> list[str]:
    """Names of processors that other packages offer under the entry point group.

    None is imported here: that runs their code, which may end the process.
    """
    return sorted({entry.name for entry in entry_points(group=GROUP)})
