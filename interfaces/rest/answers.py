"""What clients get as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

POSITION = "Uptrail-Position"

_encode = msgspec.json.Encoder().encode


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`lag` is how many positions the read model is behind the log."""

    status: str
    head: int | None = None
    position: int | None = None
    lag: int | None = None


def json_answer(
    value: Any,
    *,
    status: int = 200,
    position: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """The value as JSON; `position` is the place in the log it reflects, at least."""
    sent = dict(headers or {})
    if position is not None:
        sent[POSITION] = str(position)
    return web.Response(
        status=status, body=_encode(value), content_type="application/json", headers=sent
    )
