"""All processors that pipelines can name: those of Uptrail, and those of installed packages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import msgspec

from application.pipeline import Pipeline, Processor, Step
from infrastructure.outbound import BadDestination, PrivateAddress, parse_destination
from infrastructure.processors.antivirus import AntivirusOptions, antivirus
from infrastructure.processors.archive import Archive, ArchiveOptions
from infrastructure.processors.decoder_pool import DecoderPool
from infrastructure.processors.http import HttpOptions
from infrastructure.processors.media_type import MediaType, MediaTypeOptions
from infrastructure.processors.options import BadOption, Options, parse_options
from infrastructure.processors.simple import (
    ChecksumOptions,
    RehearseOptions,
    compute_checksum,
    fail_once,
)
from infrastructure.processors.step_pool import StepPool, installed_problems
from infrastructure.processors.thumbnail import Thumbnail, ThumbnailOptions
from infrastructure.settings_loader import BadSetting

ENTRY_POINT_GROUP = "uptrail.processors"
STEP_PROCESSES = 8
STEP_MEMORY = 1 << 30  # bytes


class Resources(NamedTuple):
    """Resources that processors share; `http` is None if no service can be called."""

    decoders: DecoderPool
    http: Processor | None


class BuiltInProcessor(NamedTuple):
    """Declaration of a processor: the only place where it is registered."""

    name: str
    options: type[Options]
    description: str
    make: Callable[[Resources], Processor | None]


PROCESSORS = (
    BuiltInProcessor(
        "checksum",
        ChecksumOptions,
        "computes the SHA-256 and compares it with the declared one",
        lambda resources: compute_checksum,
    ),
    BuiltInProcessor(
        "media-type",
        MediaTypeOptions,
        "determines the media type and denies types",
        lambda resources: MediaType(resources.decoders),
    ),
    BuiltInProcessor(
        "thumbnail",
        ThumbnailOptions,
        "attaches a small WebP picture",
        lambda resources: Thumbnail(resources.decoders),
    ),
    BuiltInProcessor(
        "archive",
        ArchiveOptions,
        "reads zip and tar files to their end and refuses dangerous ones",
        lambda resources: Archive(resources.decoders),
    ),
    BuiltInProcessor(
        "antivirus",
        AntivirusOptions,
        "scans the file with clamd",
        lambda resources: antivirus,
    ),
    BuiltInProcessor(
        "http",
        HttpOptions,
        "calls a service of yours",
        lambda resources: resources.http,
    ),
    BuiltInProcessor(
        "rehearse",
        RehearseOptions,
        "fails the first attempt on purpose, for demos",
        lambda resources: fail_once,
    ),
)


@asynccontextmanager
async def open_processors(
    http: Processor | None = None, *, processes: int = STEP_PROCESSES, memory: int = STEP_MEMORY
) -> AsyncIterator[dict[str, Processor]]:
    """Yield the processors by name; their child processes end with the context.

    `http` calls services: it needs a way to receive their results. Steps of installed packages run
    in `processes` processes, each with at most `memory` bytes of memory.
    """
    async with DecoderPool() as decoders, StepPool(size=processes, memory=memory) as pool:
        resources = Resources(decoders, http)
        processors: dict[str, Processor] = {}
        for name in installed_names():
            processors[name] = pool.processor(name)
        for declared in PROCESSORS:
            if (processor := declared.make(resources)) is not None:
                processors[declared.name] = processor
        yield processors


class InstalledOptions:
    """Options of an installed processor, which are checked in a process of its own."""

    def __init__(self, name: str) -> None:
        self._name = name

    def problem(self, options: dict[str, Any]) -> str:
        """Return what is wrong with these options, or with loading the processor; "" if nothing.

        A processor declares its options in an attribute `options`, a msgspec Struct.
        """
        (found,) = installed_problems([(self._name, options)])
        return found


def known_options() -> dict[str, Any]:
    """Return by processor the type of its options, or `InstalledOptions`."""
    installed = {name: InstalledOptions(name) for name in installed_names()}
    return {**installed, **{declared.name: declared.options for declared in PROCESSORS}}


def installed_names() -> list[str]:
    """Return the names of processors that other packages offer under the entry point group.

    None is imported here: that runs their code, which may end the process.
    """
    return sorted({entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)})


def check_pipelines(
    pipelines: Mapping[str, Pipeline],
    known: Mapping[str, Any],
    *,
    allow_private_addresses: bool = False,
) -> None:
    """Check every step before the first file arrives; `known` is of `known_options`.

    Raises BadSetting for the first step that cannot work, with what could be written instead.
    """
    for name, pipeline in pipelines.items():
        for number, step in enumerate(pipeline.steps, 1):
            problem = _options_problem(step, known)
            problem = problem or _url_problem(step, known, allow_private_addresses)
            if problem:
                raise BadSetting(f"pipelines.{name}, step {number} ({step.label}): {problem}")


def _options_problem(step: Step, known: Mapping[str, Any]) -> str:
    if step.processor not in known:
        names = ", ".join(sorted(known))
        return f"there is no processor {step.processor!r}; known are {names}"
    options = known[step.processor]
    if isinstance(options, InstalledOptions):
        return options.problem(step.options)
    if isinstance(options, type) and issubclass(options, msgspec.Struct):
        try:
            parse_options(options, step.options)
        except BadOption as error:
            return str(error)
    return ""


def _url_problem(step: Step, known: Mapping[str, Any], allow_private_addresses: bool) -> str:
    """Return why no request of an `http` step could ever be sent; empty if one could."""
    if known[step.processor] is not HttpOptions:
        return ""
    try:
        destination = parse_destination(parse_options(HttpOptions, step.options).url)
        if not allow_private_addresses:
            destination.require_public()
    except BadDestination as error:
        return f"the option `url` {error}"
    except PrivateAddress as error:
        return f"the option `url` leads to a private network: {error}"
    return ""
