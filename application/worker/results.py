"""Validation of what a step returns: a JSON object of limited size."""

from __future__ import annotations

from typing import Any

import msgspec

from application.pipeline import Permanent

MAX_RESULT = 64 * 1024  # bytes of JSON


class BadResult(Permanent):
    """A processor returned something that cannot be recorded."""


def encode_result(result: Any) -> bytes:
    """Encode a step's result as JSON. Raises BadResult."""
    try:
        encoded = msgspec.json.encode(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise BadResult(f"the result is not JSON: {error}") from None
    if not isinstance(result, dict) or len(encoded) > MAX_RESULT:
        raise BadResult(f"a result is an object of at most {MAX_RESULT} bytes of JSON")
    return encoded
