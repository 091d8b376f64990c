"""JSON responses with the position of the log that they reflect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

POSITION = "Uptrail-Position"

_encode = msgspec.json.Encoder().encode


def json_response(
    value: Any,
    *,
    status: int = 200,
    position: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return the value as JSON; `position` is the least position of the log that it reflects."""
    all_headers = dict(headers or {})
    if position is not None:
        all_headers[POSITION] = str(position)
    return web.Response(
        status=status, body=_encode(value), content_type="application/json", headers=all_headers
    )
