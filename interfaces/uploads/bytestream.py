"""A request's body to be read by those who take it apart: so many bytes, a line, up to a mark."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from interfaces.rest.problems import Problem
from interfaces.uploads.body import Body

Source = Callable[[], AsyncIterator[bytes]]


class Malformed(Problem):
    """A body that is not what its media type says; what was read before it stays taken."""

    def __init__(self, detail: str) -> None:
        super().__init__(400, "malformed_body", detail)


class ByteStream:
    """Bytes of a body in order. Memory: the chunk at hand and a line or mark that it cuts."""

    def __init__(self, source: Source, *, ahead: bytes = b"") -> None:
        self._source = source
        self._chunks = source()
        self._buffer = ahead
        self._at = 0

    async def exactly(self, size: int) -> bytes:
        """The next `size` bytes: few, they are held in memory. Raises Malformed, Ended."""
        while len(self._buffer) - self._at < size:
            await self._more()
        return self._taken(self._at + size)

    async def some(self, most: int) -> bytes:
        """At least one of the next bytes, at most `most`. Raises Malformed, Ended."""
        if self._at == len(self._buffer):
            await self._more()
        return self._taken(min(len(self._buffer), self._at + most))

    async def line(self, most: int) -> bytes:
        """The next line without its CRLF. Raises Malformed, also for a longer one, Ended."""
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            if len(self._buffer) - self._at > most:
                break
            await self._more()
        if end < 0 or end - self._at > most:
            raise Malformed(f"a line must be at most {most} bytes")
        line = self._taken(end)
        self._at += 2
        return line

    async def before(self, mark: bytes) -> bytes:
        """Some of the bytes before the mark; none at the mark, which is then behind us.

        Raises Malformed where the body ends without it, Ended.
        """
        while True:
            found = self._buffer.find(mark, self._at)
            if found == self._at:
                self._at += len(mark)
                return b""
            # The end of what is here may be the beginning of the mark.
            end = found if found > 0 else len(self._buffer) - len(mark) + 1
            if end > self._at:
                return self._taken(end)
            await self._more()

    async def rest(self) -> AsyncIterator[bytes]:
        """All that is left of the body. Raises Ended."""
        if self._at < len(self._buffer):
            yield self._taken(len(self._buffer))
        while chunk := await self._next():
            yield chunk

    def _taken(self, end: int) -> bytes:
        taken = self._buffer[self._at : end]
        self._at = end
        return taken

    async def _more(self) -> None:
        chunk = await self._next()
        if not chunk:
            raise Malformed("the body ends too soon")
        self._buffer = self._buffer[self._at :] + chunk if self._at < len(self._buffer) else chunk
        self._at = 0

    async def _next(self) -> bytes:
        """The next chunk, none at the end. Raises Ended."""
        try:
            return await anext(self._chunks, b"")
        except asyncio.CancelledError:
            # Whoever waited for one file was called off: the body goes on for the next one.
            self._chunks = self._source()
            raise


def stream_of(request: web.Request, *, ahead: bytes = b"") -> ByteStream:
    """The body of a request."""
    return ByteStream(lambda: Body(request), ahead=ahead)
