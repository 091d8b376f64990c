"""JSON responses, and limits on responses to slow clients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from aiohttp import web

from interfaces.common.problems import Problem
from interfaces.common.server import on_finished

POSITION = "Uptrail-Position"
WRITE_SIZE = 64 * 1024  # bytes written at once, before waiting for the client to read
LARGE_RESPONSE = 64 * 1024  # bytes of a body that counts as a concurrent response


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


class Stream(StrEnum):
    """Kinds of responses, by the memory that a slow reader occupies."""

    DOWNLOAD = "download"  # a chunk of the file
    HISTORY = "history"  # a page of events
    EXPORT = "export"  # a page of events, and the tree of a log seal
    REPORT = "report"  # a snapshot of the database
    DOCUMENT = "document"  # a large response in one piece, such as a page of a list


MAX_CONCURRENT = {
    Stream.DOWNLOAD: 64,
    Stream.HISTORY: 8,
    Stream.EXPORT: 2,
    Stream.REPORT: 2,
    Stream.DOCUMENT: 8,
}
"""Responses that one principal may read at the same time, per process."""


class Streams:
    """Limiter of concurrent responses of this process."""

    def __init__(self) -> None:
        self._open: Counter[tuple[str, Stream]] = Counter()

    def __len__(self) -> int:
        return self._open.total()

    def open(self, request: web.Request, principal: str, kind: Stream) -> None:
        """Count the response until it has been sent. Raises a 429 Problem for one too many."""
        key = principal, kind
        if self._open[key] >= MAX_CONCURRENT[kind]:
            raise Problem(
                429,
                "too_many_streams",
                f"{MAX_CONCURRENT[kind]} responses of this kind ({kind}) are being read by"
                f" {principal}, which is the most; read or close one of them first",
                headers={"Retry-After": "1"},
            )
        self._open[key] += 1
        on_finished(request, lambda: self._close(key))

    def _close(self, key: tuple[str, Stream]) -> None:
        self._open[key] -= 1
        if not self._open[key]:
            del self._open[key]


STREAMS: web.AppKey[Streams] = web.AppKey("streams", Streams)


async def write_in_pieces(response: web.StreamResponse, content: bytes) -> None:
    """Write the content no faster than the client reads it. Raises ConnectionError."""
    for start in range(0, len(content), WRITE_SIZE):
        await response.write(content[start : start + WRITE_SIZE])
