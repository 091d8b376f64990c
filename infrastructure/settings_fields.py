"""One setting at a time: what its field allows, and its value out of text or TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import msgspec
from msgspec import inspect

from infrastructure.settings import Settings

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?)?B?", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SECONDS = {None: 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0}


class BadSetting(Exception):
    """A setting that is not allowed: the message names its source, its field, what is."""


class Given(NamedTuple):
    """A value and the place that named it."""

    value: Any
    source: str


class Field(msgspec.Struct, frozen=True):
    """One setting: its type with constraints, for msgspec and for people."""

    name: str
    annotation: Any
    allowed: str
    description: str
    unit: str | None
    default: Any


@cache
def fields() -> Mapping[str, Field]:
    """Every setting, in the order of the Struct."""
    hints = get_type_hints(Settings, include_extras=True)
    defaults = Settings()
    known = {}
    for field in inspect.type_info(Settings).fields:  # type: ignore[attr-defined]
        outer = field.type
        described = (outer.extra_json_schema or {}).get("description", "")
        unit = (outer.extra or {}).get("unit")
        known[field.name] = Field(
            field.name,
            hints[field.name],
            _allowed(outer.type, unit),
            described,
            unit,
            getattr(defaults, field.name),
        )
    return known


def read_text(name: str, text: str, source: str) -> Any:
    """The value out of an environment variable or an option.

    Lists are separated by commas, tables are JSON. Raises BadSetting.
    """
    field = fields()[name]
    if field.unit:
        return read_value(name, text, source)
    value: Any = text
    if field.allowed == LIST:
        value = [part.strip() for part in text.split(",") if part.strip()]
    elif field.allowed == TABLE:
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise _bad(field, source, f"is not valid JSON: {error}") from None
    return read_value(name, value, source, strict=False)


def read_value(name: str, value: Any, source: str, *, strict: bool = True) -> Any:
    """The value out of TOML types; sizes and times may carry a unit. Raises BadSetting."""
    field = fields()[name]
    if field.unit and isinstance(value, str):
        value, strict = _with_unit(value, field.unit), False
    try:
        return msgspec.convert(value, field.annotation, strict=strict, dec_hook=_decode)
    except msgspec.ValidationError as error:
        if field.allowed == TABLE:
            raise _bad(field, source, f"is not as it must be: {error}") from None
        raise _bad(field, source, f"must be {field.allowed}, not {value!r}") from None


def similar(name: str, prefix: str) -> str | None:
    """The setting that was probably meant."""
    close = get_close_matches(name.lower().replace("-", "_"), fields(), n=1)
    if not close:
        return None
    return f"{prefix}{close[0].upper()}" if prefix else close[0]


LIST = "a list of texts"
TABLE = "a table"


def _allowed(type: inspect.Type, unit: str | None) -> str:
    match type:
        case inspect.UnionType(types=types):
            return _allowed(next(t for t in types if not isinstance(t, inspect.NoneType)), unit)
        case inspect.LiteralType(values=values):
            return " or ".join(map(str, values))
        case inspect.IntType():
            least, most = type.ge, type.le
            number = "a size such as 16MiB" if unit == "bytes" else "a whole number"
            if unit == "bytes":
                return number
            return f"{number} from {least}" + (f" to {most}" if most is not None else " on")
        case inspect.StrType(pattern=str(pattern)):
            if pattern.startswith("^http"):
                return "an address such as https://example.com"
            return "a path such as /files/ that is not one of our own, or empty"
        case inspect.BoolType():
            return "true or false"
        case inspect.FloatType():
            return "a time above 0 such as 0.5 or 2s" if unit else "a number"
        case inspect.VarTupleType():
            return LIST
        case inspect.DictType() | inspect.StructType():
            return TABLE
        case inspect.CustomType():
            return "a folder"
    return "a text"


def _with_unit(text: str, unit: str) -> Any:
    """A size in bytes or a time in seconds; the text itself where it is neither."""
    if unit == "bytes" and (size := _SIZE.fullmatch(text.strip())):
        letter = (size[2] or "").lower().removesuffix("i")
        return int(float(size[1]) * 1024 ** _POWERS[letter])
    if unit == "seconds" and (time := _TIME.fullmatch(text.strip())):
        return float(time[1]) * _SECONDS[time[2]]
    return text


def _decode(type: type, value: Any) -> Any:
    if type is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("a folder is wanted")


def _bad(field: Field, source: str, problem: str) -> BadSetting:
    return BadSetting(f"{source}: {field.name} {problem}")
