"""The sending side of one connection, WebSocket or Server-Sent Events, which makes nobody wait."""

from __future__ import annotations

import asyncio
import socket
from typing import Protocol

from aiohttp import web

from interfaces.feed.encoding import Encoding
from interfaces.feed.messages import Heartbeat

NEVER_PAUSED = 1 << 30  # bytes; see `_Line`


class Wire(Protocol):
    """What the hub writes to. `answers`: the other end talks too, so that its silence tells."""

    answers: bool

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken yet, beyond what the system buffers."""

    async def send(self, frame: bytes, cursor: str | None = None) -> None:
        """Sends an encoded frame; `cursor` is what the client resumes with once it has it.

        An empty cursor means: forget the one before. Raises ConnectionError.
        """

    async def beat(self) -> None:
        """Shows that we live, and asks the same of a peer that answers. Raises ConnectionError."""

    def cut(self) -> None:
        """Ends the connection without a word; what waits is dropped."""


class _Line:
    """The transport under a wire.

    The transport would pause a writer at 64 KiB; then one slow client would hold up the tick of
    all others. So it is told not to, and whoever writes looks at `waiting` first.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(high=NEVER_PAUSED)
        self._transport = transport

    @property
    def waiting(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def cut(self) -> None:
        self._transport.abort()


class SocketWire(_Line):
    """A WebSocket; its close code says why it ends, so cursors travel in the frames alone."""

    answers = True

    def __init__(
        self, socket: web.WebSocketResponse, transport: asyncio.Transport, encoding: Encoding
    ) -> None:
        super().__init__(transport)
        self.socket = socket
        self._kind = encoding.kind
        self._heartbeat = encoding.plain(Heartbeat())

    async def send(self, frame: bytes, cursor: str | None = None) -> None:
        await self.socket.send_frame(frame, self._kind)

    async def beat(self) -> None:
        await self.send(self._heartbeat)
        await self.socket.ping()


class StreamWire(_Line):
    """Server-Sent Events: every frame is the data of one event, its cursor the event's id.

    Source: https://html.spec.whatwg.org, section 9.2. Events are not named: `error` would be
    taken for the browser's own, and each frame says its type. Encoded JSON has no line breaks.
    """

    answers = False

    def __init__(
        self, response: web.StreamResponse, transport: asyncio.Transport, patience: float
    ) -> None:
        """`patience`: seconds after which the system gives up a peer that confirms nothing."""
        super().__init__(transport)
        self._response = response
        line = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and line.family != socket.AF_UNIX:  # Linux
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * patience))

    async def send(self, frame: bytes, cursor: str | None = None) -> None:
        id = b"" if cursor is None else b"id:%b\n" % cursor.encode()
        await self._response.write(b"%bdata:%b\n\n" % (id, frame))

    async def beat(self) -> None:
        await self._response.write(b":\n\n")
