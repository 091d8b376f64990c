"""Values as a row can hold them."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

Columns: TypeAlias = dict[str, Any]
"""Column names and what to assign to them."""

_encode = msgspec.json.Encoder().encode
_NUL = "\0"
_SHOWN = "\ufffd"


def text(value: str) -> str:
    """The text without NUL characters, which PostgreSQL cannot store in text.

    An exception's message may hold one; it must not stop the projection.
    """
    return value.replace(_NUL, _SHOWN) if _NUL in value else value


def tree(value: dict[str, Any]) -> dict[str, Any]:
    """The same for JSON: a step's result comes from any processor."""
    if b"\\u0000" not in _encode(value):  # far quicker than walking through it
        return value
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
