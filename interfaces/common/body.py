"""Reading of request bodies: in chunks, `100 Continue`, single-valued headers and byte ranges.

Ranges follow RFC 9110 section 14: one range of bytes, or everything.
"""

from __future__ import annotations

import asyncio
import re
from typing import Self

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from application.transfers.errors import ClientDisconnected
from interfaces.common.problems import Problem, bad_parameter
from interfaces.common.server import connection_of

CONTINUE_PENDING: web.RequestKey[bool] = web.RequestKey("waits_for_100_continue", bool)


async def defer_100_continue(request: web.Request) -> None:
    """Put off `100 Continue` until the handler reads the body; the `expect_handler` of routes.

    aiohttp would send it before the request is authenticated and checked.
    """
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        raise Problem(417, "expectation_failed", "only Expect: 100-continue is understood")
    request[CONTINUE_PENDING] = True
    connection_of(request).suspend_body_deadline()


async def send_100_continue(request: web.Request) -> None:
    """Send `100 Continue` if the client waits for it."""
    if request.get(CONTINUE_PENDING):
        request[CONTINUE_PENDING] = False
        connection_of(request).resume_body_deadline()
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the final response has not begun


def reject_content_encoding(request: web.Request) -> None:
    """Raise a 415 Problem for a compressed body: offsets count the bytes as they are sent."""
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if coding != "identity":
        raise Problem(415, "content_encoding", "send the bytes without Content-Encoding")


class Body:
    """Iterator over the chunks of a body, uncopied, up to the last byte that arrived.

    If the connection breaks, raises ClientDisconnected, but only after the last byte. Also raises
    TransferAborted when the connection misses a deadline or its credential ends.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._stream = request.content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            await send_100_continue(self._request)
            # aiohttp does not report a connection that broke before the request was begun.
            if self._request.transport is None and not self._stream.is_eof():
                raise ConnectionResetError("the connection was lost")
            chunk = await self._stream.readany()
        except (OSError, HttpProcessingError, web.RequestPayloadError) as error:
            if rest := self._unread():
                return rest
            raise ClientDisconnected("the connection broke") from error
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def read_buffered(self) -> bytes:
        """Return the bytes that arrived and were not read yet, those in the socket included."""
        if self._request.get(CONTINUE_PENDING):
            return b""
        await asyncio.sleep(0)  # the loop looks at its sockets
        return self._unread()

    def _unread(self) -> bytes:
        """Return the buffered bytes, also of a stream that refuses reads after an exception."""
        error = self._stream.exception()
        self._stream.set_exception(None)  # type: ignore[arg-type]
        rest = self._stream.read_nowait()
        if error is not None:
            self._stream.set_exception(error)
        return rest


async def read_all(request: web.Request) -> bytes:
    """Read all of a body that is known to be small. Raises TransferAborted."""
    if request.content.is_eof():  # it arrived with the head: nothing to wait for
        return await request.content.read()
    parts = [chunk async for chunk in Body(request)]
    return parts[0] if len(parts) == 1 else b"".join(parts)


def single_header(request: web.Request, header: str) -> str | None:
    """Return the header as it was sent, None without it.

    Raises a 400 Problem for several that differ: choosing one could choose the wrong one, and a
    proxy in front may have read the other (RFC 9110 section 5.3).
    """
    lines = request.headers.getall(header, None)
    if lines is None:
        return None
    if len(lines) > 1 and len(set(lines)) > 1:
        raise bad_parameter(header, "must be sent once, not several times and each time otherwise")
    return lines[0]


_ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*", re.ASCII | re.IGNORECASE)


class Unsatisfiable(Exception):
    """The range lies outside of the content."""


class ByteRange(msgspec.Struct, frozen=True):
    """Bytes from `start` up to `end` (exclusive) of `size`."""

    start: int
    end: int
    size: int

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """Parse a Range header; None for the whole content.

    A malformed header, another unit and several ranges are ignored, as RFC 9110 section 14.2
    allows. Raises Unsatisfiable.
    """
    found = _ONE_RANGE.fullmatch(header or "")
    if found is None or found.group(1) == found.group(2) == "":
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= size or start == end:
        raise Unsatisfiable(f"bytes */{size}")
    return ByteRange(start, end, size)
