"""A request's body as chunks, to the last byte that arrived, however the connection ends."""

from __future__ import annotations

import asyncio
from typing import Self

from aiohttp import hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from application.transfer.errors import SenderGone
from interfaces.rest.problems import Problem
from interfaces.rest.server import connection_of

HELD: web.RequestKey[bool] = web.RequestKey("waits_for_100_continue", bool)


async def hold(request: web.Request) -> None:
    """For routes, as `expect_handler`: a client that asks first is answered once we want the body.

    aiohttp would send `100 Continue` before anybody looked at the request.
    """
    if request.headers.get(hdrs.EXPECT, "").lower() != "100-continue":
        raise Problem(417, "expectation_failed", "only Expect: 100-continue is understood")
    request[HELD] = True
    connection_of(request).hold_body()


async def go_ahead(request: web.Request) -> None:
    """Asks the client for the body, if it waits to be asked."""
    if request.get(HELD):
        request[HELD] = False
        connection_of(request).release_body()
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the answer proper has not begun


def require_plain(request: web.Request) -> None:
    """Raises a 415 Problem for a compressed body: offsets count the bytes as they are sent."""
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if coding != "identity":
        raise Problem(415, "content_encoding", "send the bytes without Content-Encoding")


class Body:
    """The body as it arrives, uncopied; raises SenderGone after the last byte there is.

    Also raises Stalled and AccessEnded, if the connection's deadline or credential ended.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._stream = request.content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            await go_ahead(self._request)
            # aiohttp does not tell of a connection that broke before it had begun the request.
            if self._request.transport is None and not self._stream.is_eof():
                raise ConnectionResetError("the connection was lost")
            chunk = await self._stream.readany()
        except (OSError, HttpProcessingError, web.RequestPayloadError) as error:
            if rest := self._unread():
                return rest
            raise SenderGone("the connection broke") from error
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def here(self) -> bytes:
        """What arrived and was not read yet, that which the sockets still hold included."""
        if self._request.get(HELD):
            return b""
        await asyncio.sleep(0)  # the loop looks at its sockets
        return self._unread()

    def _unread(self) -> bytes:
        """A stream with an exception set refuses to be read, also where it still holds bytes."""
        error = self._stream.exception()
        self._stream.set_exception(None)  # type: ignore[arg-type]
        rest = self._stream.read_nowait()
        if error is not None:
            self._stream.set_exception(error)
        return rest


async def whole(request: web.Request) -> bytes:
    """All of a body that is known to be small. Raises Ended."""
    if request.content.is_eof():  # it came along with the headers: there is nothing to wait for
        return await request.content.read()
    parts = [chunk async for chunk in Body(request)]
    return parts[0] if len(parts) == 1 else b"".join(parts)
