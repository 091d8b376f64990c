"""Values as a row can hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import msgspec

Columns: TypeAlias = Mapping[str, Any]
"""Column names and what to assign to them. Read-only: the fold merges into mappings of its own."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_NUL = "\0"
_SHOWN = "\ufffd"


def text(value: str) -> str:
    """The text without NUL characters, which PostgreSQL cannot store in text.

    An exception's message may hold one; it must not stop the projection.
    """
    return value.replace(_NUL, _SHOWN) if _NUL in value else value


def tree(value: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a JSON object, without NUL characters: a step's result comes from any processor.

    A copy, so that a row never shares a mutable value with the event it came from.
    """
    if not value:
        return {}
    encoded = _encode(value)
    if b"\\u0000" not in encoded:  # far quicker than walking through it
        return _decode(encoded)
    cleaned: dict[str, Any] = _cleaned(value)
    return cleaned


def _cleaned(value: Any) -> Any:
    match value:
        case str():
            return text(value)
        case dict():
            return {text(key): _cleaned(item) for key, item in value.items()}
        case list():
            return [_cleaned(item) for item in value]
        case _:
            return value
