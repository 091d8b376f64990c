"""Values as a row can hold them."""

from __future__ import annotations

from typing import Any, TypeAlias

Columns: TypeAlias = dict[str, Any]
"""Column names and what to assign to them."""

_NUL = "\0"
_SHOWN = "\ufffd"


def text(value: str) -> str:
    """The text without NUL characters, which PostgreSQL cannot store in text.

    An exception's message may hold one; it must not stop the projection.
    """
    return value.replace(_NUL, _SHOWN) if _NUL in value else value


def tree(value: Any) -> Any:
    """The same for JSON: a step's result comes from any processor."""
    match value:
        case str():
            return text(value)
        case dict():
            return {text(key): tree(item) for key, item in value.items()}
        case list():
            return [tree(item) for item in value]
        case _:
            return value
