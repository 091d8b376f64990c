"""One connected client: what it follows, how far it is, and how much still waits to be sent."""

from __future__ import annotations

import asyncio
from datetime import datetime

import msgspec

from application.ports.feed import Changes
from application.ports.keys import Credential, Principal
from interfaces.feed.encoding import Encoding
from interfaces.feed.messages import CloseCode, Closed, Head, Reset
from interfaces.feed.place import START, Place
from interfaces.feed.subscription import Subscription
from interfaces.feed.wire import Wire

DRAIN_POLL = 0.05  # seconds between looks at a buffer that drains


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
        self.stay = object()  # another one each time the client joins the ticks
        self.behind = asyncio.Event()
        self.heard_at = loop.time()
        self.warned_of: datetime | None = None  # the end of the credential, once it was told
        self.ended: asyncio.Future[None] = loop.create_future()

    def follow(self, subscription: Subscription) -> None:
        """Replaces what the client follows; it is behind until it has been told all of it."""
        self.subscription = subscription
        self.place = subscription.place
        self.is_new = True
        self.behind.set()

    async def say(self, frame: msgspec.Struct) -> None:
        """Sends a frame without rows. Raises ConnectionError."""
        forgotten = "" if isinstance(frame, Reset) else None
        await self.wire.send(self.encoding.plain(frame), forgotten)

    async def tell(self, head: Head, rows: bytes, reached: Place) -> None:
        """Sends a frame of rows, which brings the client to this place. Raises ConnectionError."""
        await self.wire.send(self.encoding.frame(head, rows), reached.cursor)
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

    def end_access(self) -> None:
        """Ends the connection: its credential does not hold any more."""
        self.end(CloseCode.SIGNED_OUT, "the key was revoked or the session is over")

    def end(self, code: CloseCode, reason: str) -> None:
        """Has the socket closed by its own task. The first reason given counts."""
        if not self.ended.done():
            self.ended.set_exception(Closed(code, reason))
            self.ended.exception()  # retrieved, even if the socket ends for another reason first
