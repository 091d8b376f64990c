"""One connected client: what it follows, how far it is, and how much still waits to be sent."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

import msgspec
from aiohttp import web

from application.ports.auth import Credential, Principal
from application.ports.read_model import ChangePage, FeedFilter
from interfaces.feed.protocol import (
    ChangesHead,
    CloseCode,
    ConnectionClosed,
    Encoding,
    Error,
    Head,
    Heartbeat,
    Reset,
    SnapshotHead,
    Subscribe,
)

# Where a client stands: `epoch:position`, given out with every frame of rows.

_CURSOR = re.compile(r"([0-9A-Za-z-]{1,64}):([0-9]{1,18})", re.ASCII)


class Cursor(msgspec.Struct, frozen=True):
    """A position, in the life of one read model."""

    epoch: str
    position: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.position}"


def parse(text: str) -> Cursor | None:
    """The cursor a client hands back; None for what the server cannot have given out."""
    if (match := _CURSOR.fullmatch(text)) is None:
        return None
    return Cursor(match[1], int(match[2]))


# What one client, or one principal, may take of the feed.


class FeedLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes."""

    message_size: int = 16 * 1024  # of one message from a client
    batches: int = 256  # followed at once on one socket
    sockets: int = 256  # open at once for one principal
    strangers: int = 64  # sockets that have not said yet who they are
    principal_buffer: int = 16 * 1024 * 1024  # that wait for all sockets of one principal
    first_message: float = 5.0  # for them to say so
    subscribe_burst: int = 20
    subscribe_rate: float = 2.0  # a second, once the burst is used up
    faults: int = 10  # messages that make no sense, before the socket is closed
    page: int = 500  # uploads in one frame
    tick: int = 5000  # uploads that are read at once for all clients together
    readers: int = 4  # clients that catch up at the same moment
    stuck: float = 30.0  # without draining at all, before the socket is closed
    recheck: float = 10.0  # between two looks whether a credential still holds
    warning: float = 60.0  # before a credential ends, its holder is told
    farewell: float = 2.0  # for a client to answer our close


class TokenBucket:
    """So many at once, then so many a second. Time is an argument."""

    def __init__(self, burst: int, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Whether one more is allowed now."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


# How far one client is, and which frame comes next: pure, so that every way can be tested.


class ClientPosition(msgspec.Struct, frozen=True):
    """The client has everything up to `position`, of the read model `epoch`.

    `whole` is how far that holds for attempts, which come with their uploads: the end of the last
    frame that did not stop short, and so where a client that is cut resumes. `part` numbers the
    snapshot's next part; None once it is whole. The parts follow each other by position, so a row
    that changes meanwhile comes again in a later part: after the last one the client has exactly
    the rows of the moment at which that one was read.
    """

    epoch: str | None = None
    position: int = 0
    whole: int = 0
    part: int | None = 1

    @property
    def cursor(self) -> str | None:
        """What the client resumes with; None while its snapshot is not whole."""
        return str(Cursor(self.epoch or "", self.whole)) if self.part is None else None


START = ClientPosition()


def from_cursor(after: str | None) -> tuple[ClientPosition, Reset | None]:
    """The place a subscription begins at; the reset says why it is not the one asked for."""
    if after is None:
        return START, None
    if (cursor := parse(after)) is None:
        return START, Reset("unreadable")
    return ClientPosition(cursor.epoch, cursor.position, cursor.position, None), None


def reset_reason(place: ClientPosition, changes: ChangePage) -> Reset | None:
    """Why rows read now cannot follow on what the client has; it must start again."""
    if place.epoch is None:
        return None
    if place.epoch != changes.epoch:
        return Reset("rebuilt")
    if place.position > changes.head:
        return Reset("ahead")
    return None


def advance(place: ClientPosition, changes: ChangePage) -> tuple[Head, ClientPosition]:
    """The head of the frame that carries these changes, and the place after it."""
    reached = ClientPosition(
        epoch=changes.epoch,
        position=changes.to,
        whole=place.whole if changes.more else changes.to,
        part=place.part + 1 if place.part and changes.more else None,
    )
    if place.part is not None:
        return SnapshotHead(place.part, changes.to, changes.more, reached.cursor), reached
    return ChangesHead(place.position, changes.to, changes.more, reached.cursor), reached


# From what a client asks to follow to what it may see.

UNKNOWN = "there is no such batch, or not yet; should it be started, it will appear here"


class Subscription(msgspec.Struct, frozen=True):
    """One request to follow, settled: replaced as a whole by the next one.

    `first` are the frames that answer it before any rows, which come once they reflect `least`.
    """

    selection: FeedFilter
    place: ClientPosition
    first: tuple[msgspec.Struct, ...] = ()
    asked: frozenset[UUID] = frozenset()
    least: int | Literal["latest"] = 0


def resolve_subscription(message: Subscribe, principal: Principal) -> Subscription:
    """What this principal follows from now on.

    A batch that does not exist yet stays part of it. What belongs to another owner does too, and
    never shows: every row is compared with the owner.
    """
    place, reset = from_cursor(message.after)
    first: list[msgspec.Struct] = [reset] if reset else []
    least = message.min_position or 0
    if message.batches == "*":
        limited = None if principal.batch is None else frozenset({principal.batch})
        return Subscription(
            FeedFilter(principal.visible_owner, limited), place, tuple(first), least=least
        )
    asked: set[UUID] = set()
    for text in message.batches:
        id = _parsed(text)
        if id is None or principal.batch not in (None, id):
            first.append(unknown_batch_error(text))
        else:
            asked.add(id)
    ids = frozenset(asked)
    return Subscription(
        FeedFilter(principal.visible_owner, ids, ids), place, tuple(first), ids, least
    )


def unknown_batch_error(batch: str) -> Error:
    """The one answer for a batch that is not there, whatever the cause."""
    return Error("unknown_batch", UNKNOWN, batch[:64])


def unknown_batch_errors(asked: frozenset[UUID], known: Iterable[UUID]) -> list[Error]:
    """An error for each batch asked for that cannot be seen, in a stable order."""
    return [unknown_batch_error(str(id)) for id in sorted(asked - frozenset(known))]


def _parsed(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


# The sending side of one connection, WebSocket or Server-Sent Events, which makes nobody wait.

NEVER_PAUSED = 1 << 30  # bytes; see `_Line`


class Transport(Protocol):
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


class _BaseTransport:
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


class WebSocketTransport(_BaseTransport):
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


class SseTransport(_BaseTransport):
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


DRAIN_POLL = 0.05  # seconds between looks at a buffer that drains


class FeedClient:
    """State of a bounded size, whatever the client does or fails to do."""

    def __init__(
        self, wire: Transport, encoding: Encoding, principal: Principal, credential: Credential
    ) -> None:
        loop = asyncio.get_running_loop()
        self.wire = wire
        self.encoding = encoding
        self.principal = principal
        self.credential = credential
        self.subscription: Subscription | None = None
        self.place: ClientPosition = START
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

    async def tell(self, head: Head, rows: bytes, reached: ClientPosition) -> None:
        """Sends a frame of rows, which brings the client to this place. Raises ConnectionError."""
        await self.wire.send(self.encoding.frame(head, rows), reached.cursor)
        self.place = reached

    def rows_of(self, changes: ChangePage) -> bytes:
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
                raise ConnectionClosed(CloseCode.TOO_SLOW, f"nothing was read for {patience:g} s")
            await asyncio.sleep(DRAIN_POLL)

    def end_access(self) -> None:
        """Ends the connection: its credential does not hold any more."""
        self.end(CloseCode.SIGNED_OUT, "the key was revoked or the session is over")

    def end(self, code: CloseCode, reason: str) -> None:
        """Has the socket closed by its own task. The first reason given counts."""
        if not self.ended.done():
            self.ended.set_exception(ConnectionClosed(code, reason))
            self.ended.exception()  # retrieved, even if the socket ends for another reason first
