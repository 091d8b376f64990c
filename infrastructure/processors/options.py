"""Options of processors: a Struct type for each, parsed from the settings of a step."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec.structs import FieldInfo

from application.pipeline import PermanentError

T = TypeVar("T", bound=msgspec.Struct)


class BadOption(PermanentError):
    """A step has an option that its processor does not know or cannot use."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the options of the built-in processors."""


def parse_options(kind: type[T], given: dict[str, Any]) -> T:
    """Return the options as their type. Raises BadOption, which names options, never values."""
    known = _fields_of(kind)
    names = [field.encode_name for field in known]
    for name in given:
        if name not in names:
            raise BadOption(f"there is no option {name!r}{_suggestion(name, names)}")
    for field in known:
        if field.required and field.encode_name not in given:
            raise BadOption(f"the option {field.encode_name!r} is missing")
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise BadOption(str(error)) from None


@cache
def _fields_of(kind: type[msgspec.Struct]) -> tuple[FieldInfo, ...]:
    """Return the fields, cached: three processors parse their options for every file."""
    return msgspec.structs.fields(kind)


def _suggestion(name: str, known: list[str]) -> str:
    if not known:
        return "; it has none"
    if close := get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}? Known are {', '.join(sorted(known))}"
    return f"; known are {', '.join(sorted(known))}"
