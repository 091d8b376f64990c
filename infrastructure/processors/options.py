"""What a pipeline may tell a step: the options of a processor, as a type of their own."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec.structs import FieldInfo

from application.pipeline import Permanent

T = TypeVar("T", bound=msgspec.Struct)


class BadOption(Permanent):
    """A step is given an option that its processor does not know, or cannot use."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a processor of ours, each with its default."""


def read(kind: type[T], given: dict[str, Any]) -> T:
    """The options as their type. Raises BadOption, which names what is known, never a value."""
    known = _fields_of(kind)
    names = [field.encode_name for field in known]
    for name in given:
        if name not in names:
            raise BadOption(f"there is no option {name!r}{_instead(name, names)}")
    for field in known:
        if field.required and field.encode_name not in given:
            raise BadOption(f"the option {field.encode_name!r} is missing")
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise BadOption(str(error)) from None


@cache
def _fields_of(kind: type[msgspec.Struct]) -> tuple[FieldInfo, ...]:
    """Kept: they are worked out of annotations each time, and every file asks for three."""
    return msgspec.structs.fields(kind)


def _instead(name: str, known: list[str]) -> str:
    if not known:
        return "; it has none"
    if close := get_close_matches(name, known, n=1):
        return f"; did you mean {close[0]!r}? Known are {', '.join(sorted(known))}"
    return f"; known are {', '.join(sorted(known))}"
