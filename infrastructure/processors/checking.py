"""Pipelines held against the processors there are, before the first file arrives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from application.pipeline import Pipeline, Step
from infrastructure.outbound.destinations import (
    BadDestination,
    PrivateAddress,
    parse_destination,
)
from infrastructure.processors.options import BadOption, read
from infrastructure.processors.registry import InstalledOptions
from infrastructure.processors.service import HttpOptions
from infrastructure.settings_fields import BadSetting


def check_pipelines(
    pipelines: Mapping[str, Pipeline],
    known: Mapping[str, Any],
    *,
    allow_private_addresses: bool = False,
) -> None:
    """Raises BadSetting for the first step that cannot work, with what could be written instead.

    `known` has what judges the options by processor, as `known_options` answers it.
    """
    for name, pipeline in pipelines.items():
        for number, step in enumerate(pipeline.steps, 1):
            problem = _problem(step, known) or _url_problem(step, known, allow_private_addresses)
            if problem:
                raise BadSetting(f"pipelines.{name}, step {number} ({step.label}): {problem}")


def _problem(step: Step, known: Mapping[str, Any]) -> str:
    if step.processor not in known:
        names = ", ".join(sorted(known))
        return f"there is no processor {step.processor!r}; known are {names}"
    options = known[step.processor]
    if isinstance(options, InstalledOptions):
        return options.problem(step.options)
    if isinstance(options, type) and issubclass(options, msgspec.Struct):
        try:
            read(options, step.options)
        except BadOption as error:
            return str(error)
    return ""


def _url_problem(step: Step, known: Mapping[str, Any], allow_private_addresses: bool) -> str:
    """Return why no request of an `http` step could ever leave; empty if one could."""
    if known[step.processor] is not HttpOptions:
        return ""
    try:
        destination = parse_destination(read(HttpOptions, step.options).url)
        if not allow_private_addresses:
            destination.require_public()
    except BadDestination as error:
        return f"the option `url` {error}"
    except PrivateAddress as error:
        return f"the option `url` leads to a private network: {error}"
    return ""
