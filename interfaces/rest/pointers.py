"""Says where in a JSON document a fault is, as a JSON Pointer (RFC 6901) or a byte position."""

from __future__ import annotations

import re

import msgspec

from domain.errors import FieldError

_AT = re.compile(r"^(?P<what>.*) - at `(?P<path>[^`]*)`$", re.DOTALL)
_SEGMENT = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
_FIELD = re.compile(r"^Object (?:contains unknown|missing required) field `(.*)`$", re.DOTALL)


def pointer_of(fault: FieldError, *, under: str = "") -> str:
    """`files/3/size` as `/files/3/size`."""
    return f"{under}/{fault.field}" if fault.field else under


def locate(error: msgspec.ValidationError, *, under: str = "") -> tuple[str, str]:
    """The pointer and the complaint in msgspec's "Expected `int` - at `$.files[3].size`".

    A key of a free mapping has no name there (`[...]`): the pointer stops at the mapping.
    """
    text = str(error)
    match = _AT.match(text)
    what, path = (match["what"], match["path"].removeprefix("$")) if match else (text, "")
    path, _, _ = path.partition("[...]")
    segments = [name or index for name, index in _SEGMENT.findall(path)]
    if field := _FIELD.match(what):
        segments.append(field[1])
    return under + "".join(f"/{_escaped(segment)}" for segment in segments), what


def byte_position(body: bytes, error: ValueError) -> int:
    """Where JSON stops being JSON, in bytes from 0; its length where it stops too soon."""
    if isinstance(error, UnicodeDecodeError):
        # The decoder counts from the start of one string: look in the whole document.
        try:
            body.decode()
        except UnicodeDecodeError as whole:
            return whole.start
    found = re.search(r"\(byte (\d+)\)", str(error))
    return int(found[1]) if found else len(body)


def _escaped(segment: str) -> str:
    return segment.replace("~", "~0").replace("/", "~1")
