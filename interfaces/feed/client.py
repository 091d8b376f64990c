"""One connected client: what it follows, how far it is, and how much still waits to be sent."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import WSMsgType, web

from application.ports.feed import Changes
from application.ports.keys import Principal
from interfaces.feed.admission import Credential
from interfaces.feed.encoding import Encoding
from interfaces.feed.messages import CloseCode, Closed
from interfaces.feed.place import START, Head, Place
from interfaces.feed.subscription import Subscription

DRAIN_POLL = 0.05  # seconds between looks at a buffer that drains
NEVER_PAUSED = 1 << 30  # bytes; see Wire


class Wire:
    """The socket's sending side, which never makes its writer wait.

    The transport would pause a writer at 64 KiB; then one slow client would hold up the tick of
    all others. So it is told not to, and whoever writes looks at `waiting` first.
    """

    def __init__(self, socket: web.WebSocketResponse, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(high=NEVER_PAUSED)
        self.socket = socket
        self._transport = transport

    @property
    def waiting(self) -> int:
        """Bytes that the client has not taken yet, beyond what the system buffers."""
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    async def send(self, frame: bytes, kind: WSMsgType) -> None:
        """Raises ConnectionError when the client is gone."""
        await self.socket.send_frame(frame, kind)

    def cut(self) -> None:
        """Ends the connection without a word; what waits is dropped."""
        self._transport.abort()


class FeedClient:
    """State of a bounded size, whatever the client does or fails to do."""

    def __init__(
        self, wire: Wire, encoding: Encoding, principal: Principal, credential: Credential
    ) -> None:
        loop = asyncio.get_running_loop()
        self.wire = wire
        self.encoding = encoding
        self.principal = principal
        self.credential = credential
        self.subscription: Subscription | None = None
        self.place: Place = START
        self.is_new = False
        self.behind = asyncio.Event()
        self.heard_at = loop.time()
        self.ended: asyncio.Future[None] = loop.create_future()

    def follow(self, subscription: Subscription) -> None:
        """Replaces what the client follows; it is behind until it has been told all of it."""
        self.subscription = subscription
        self.place = subscription.place
        self.is_new = True
        self.behind.set()

    async def say(self, frame: msgspec.Struct) -> None:
        """Sends a frame without rows. Raises ConnectionError."""
        await self.wire.send(self.encoding.plain(frame), self.encoding.kind)

    async def tell(self, head: Head, rows: bytes, reached: Place) -> None:
        """Sends a frame of rows, which brings the client to this place. Raises ConnectionError."""
        await self.wire.send(self.encoding.frame(head, rows), self.encoding.kind)
        self.place = reached

    def rows_of(self, changes: Changes) -> bytes:
        """All rows of a page that was read for this client alone."""
        lists = (changes.batches, changes.uploads, changes.attempts)
        return self.encoding.rows(*([self.encoding.row(row) for row in rows] for rows in lists))

    async def drained(self, bound: int, patience: float) -> None:
        """Returns once no more than `bound` bytes wait.

        Raises Closed after `patience` seconds in which they did not get fewer.
        """
        loop = asyncio.get_running_loop()
        least, since = self.wire.waiting, loop.time()
        while (waiting := self.wire.waiting) > bound:
            if waiting < least:
                least, since = waiting, loop.time()
            elif loop.time() - since > patience:
                raise Closed(CloseCode.TOO_SLOW, f"nothing was read for {patience:g} s")
            await asyncio.sleep(DRAIN_POLL)

    def end(self, code: CloseCode, reason: str) -> None:
        """Has the socket closed by its own task. The first reason given counts."""
        if not self.ended.done():
            self.ended.set_exception(Closed(code, reason))
            self.ended.exception()  # retrieved, even if the socket ends for another reason first
