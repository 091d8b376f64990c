"""State and transports of one feed connection: cursor, subscription, limits and send buffer.

A cursor is `epoch:position`, sent with every frame of rows. Positions are pure values.
"""

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
from interfaces.feed import protocol

_CURSOR = re.compile(r"([0-9A-Za-z-]{1,64}):([0-9]{1,18})", re.ASCII)


class Cursor(msgspec.Struct, frozen=True):
    """A log position in one epoch: the epoch changes when the read model is rebuilt."""

    epoch: str
    position: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.position}"


def parse_cursor(text: str) -> Cursor | None:
    """Parse a cursor; None if the server cannot have sent it."""
    if (match := _CURSOR.fullmatch(text)) is None:
        return None
    return Cursor(match[1], int(match[2]))


class FeedLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of the feed for one client or principal. Times in seconds, sizes in bytes."""

    max_message_size: int = 16 * 1024  # of one message from a client
    max_batches: int = 256  # followed by one connection
    max_connections: int = 256  # of one principal
    max_unauthenticated: int = 64  # connections before their first message
    max_principal_buffer: int = 16 * 1024 * 1024  # unsent bytes of all connections of one principal
    authentication_timeout: float = 5.0  # for the first message
    subscribe_burst: int = 20
    subscribe_rate: float = 2.0  # per second, once the burst is used up
    max_errors: int = 10  # invalid messages before the connection is closed
    page_size: int = 500  # uploads in one frame
    tick_size: int = 5000  # uploads read at once for all clients together
    max_catch_up_queries: int = 4  # at the same time
    drain_timeout: float = 30.0  # without any progress, before the connection is closed
    credential_check_interval: float = 10.0
    expiry_warning: float = 60.0  # before a credential expires
    close_timeout: float = 2.0  # for a client to answer a close frame


class TokenBucket:
    """Token bucket: a burst, then a rate per second. Time is an argument."""

    def __init__(self, burst: int, rate: float, now: float) -> None:
        self._burst = burst
        self._rate = rate
        self._left = float(burst)
        self._at = now

    def take(self, now: float) -> bool:
        """Take a token, and return whether there was one."""
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class ClientPosition(msgspec.Struct, frozen=True):
    """Progress of a client: it has all rows up to `position`, of the read model `epoch`.

    `attempts_position` is the same for attempts, which are sent with their uploads: the end of the
    last complete frame, from which a client resumes. `part` is the number of the snapshot's next
    part; None once the snapshot is complete. Parts are ordered by position, so a row that changes
    meanwhile is sent again in a later part: after the last part the client has exactly the rows of
    the time at which that part was read.
    """

    epoch: str | None = None
    position: int = 0
    attempts_position: int = 0
    part: int | None = 1

    @property
    def cursor(self) -> str | None:
        """The cursor with which the client resumes; None while its snapshot is incomplete."""
        return str(Cursor(self.epoch or "", self.attempts_position)) if self.part is None else None


START = ClientPosition()


def from_cursor(after: str | None) -> tuple[ClientPosition, protocol.Reset | None]:
    """Return the position at which a subscription starts, and a reset if the cursor is unusable."""
    if after is None:
        return START, None
    if (cursor := parse_cursor(after)) is None:
        return START, protocol.Reset("unreadable")
    return ClientPosition(cursor.epoch, cursor.position, cursor.position, None), None


def reset_reason(progress: ClientPosition, changes: ChangePage) -> protocol.Reset | None:
    """Return a reset if the client's rows and these changes do not fit together, else None."""
    if progress.epoch is None:
        return None
    if progress.epoch != changes.epoch:
        return protocol.Reset("rebuilt")
    if progress.position > changes.head:
        return protocol.Reset("ahead")
    return None


def advance(progress: ClientPosition, changes: ChangePage) -> tuple[protocol.Head, ClientPosition]:
    """Return the head of the frame for these changes, and the client's position after it."""
    reached = ClientPosition(
        epoch=changes.epoch,
        position=changes.to,
        attempts_position=progress.attempts_position if changes.more else changes.to,
        part=progress.part + 1 if progress.part and changes.more else None,
    )
    if progress.part is not None:
        return protocol.SnapshotHead(
            progress.part, changes.to, changes.more, reached.cursor
        ), reached
    return protocol.ChangesHead(
        progress.position, changes.to, changes.more, reached.cursor
    ), reached


UNKNOWN = "there is no such batch, or not yet; should it be started, it will appear here"


class Subscription(msgspec.Struct, frozen=True):
    """An accepted subscription; the next one replaces all of it.

    `initial_frames` are sent before any rows. Rows are sent once they reflect `min_position`.
    """

    selection: FeedFilter
    start: ClientPosition
    initial_frames: tuple[msgspec.Struct, ...] = ()
    requested: frozenset[UUID] = frozenset()
    min_position: int | Literal["latest"] = 0


def resolve_subscription(message: protocol.Subscribe, principal: Principal) -> Subscription:
    """Return the subscription of a message, with its filter limited to what the principal may see.

    A batch that does not exist yet is kept in the filter. So is one of another owner, whose rows
    are never sent: every row's owner is compared.
    """
    start, reset = from_cursor(message.after)
    first: list[msgspec.Struct] = [reset] if reset else []
    least = message.min_position or 0
    if message.batches == "*":
        limited = None if principal.batch is None else frozenset({principal.batch})
        return Subscription(
            FeedFilter(principal.visible_owner, limited), start, tuple(first), min_position=least
        )
    requested: set[UUID] = set()
    for text in message.batches:
        id = _parse_id(text)
        if id is None or principal.batch not in (None, id):
            first.append(unknown_batch_error(text))
        else:
            requested.add(id)
    ids = frozenset(requested)
    return Subscription(
        FeedFilter(principal.visible_owner, ids, ids), start, tuple(first), ids, least
    )


def unknown_batch_error(batch: str) -> protocol.Error:
    """Return the error for a batch that cannot be seen, the same for every cause."""
    return protocol.Error("unknown_batch", UNKNOWN, batch[:64])


def unknown_batch_errors(requested: frozenset[UUID], known: Iterable[UUID]) -> list[protocol.Error]:
    """Return an error for each requested batch that cannot be seen, in a stable order."""
    return [unknown_batch_error(str(id)) for id in sorted(requested - frozenset(known))]


def _parse_id(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


WRITE_BUFFER_LIMIT = 1 << 30  # bytes, never reached; see `_BaseTransport`


class Transport(Protocol):
    """Sending side of a connection; if `is_bidirectional`, clients answer pings."""

    is_bidirectional: bool

    @property
    def buffered_bytes(self) -> int:
        """Bytes that the client has not read yet, beyond the buffers of the system."""

    async def send(self, frame: bytes, cursor: str | None = None) -> None:
        """Send an encoded frame; `cursor` is where the client resumes after it.

        An empty cursor clears the one before. Raises ConnectionError.
        """

    async def ping(self) -> None:
        """Send a keep-alive; on a WebSocket also a ping. Raises ConnectionError."""

    def abort(self) -> None:
        """Close the connection at once; buffered bytes are dropped."""


class _BaseTransport:
    """Common part of both transports.

    asyncio would pause a writer at 64 KiB; then one slow client would delay the tick of all others.
    So its limit is out of reach, and writers check `buffered_bytes` first.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(high=WRITE_BUFFER_LIMIT)
        self._transport = transport

    @property
    def buffered_bytes(self) -> int:
        return 0 if self._transport.is_closing() else self._transport.get_write_buffer_size()

    def abort(self) -> None:
        self._transport.abort()


class WebSocketTransport(_BaseTransport):
    """WebSocket transport; cursors are in the frames."""

    is_bidirectional = True

    def __init__(
        self,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport,
        encoding: protocol.Encoding,
    ) -> None:
        super().__init__(transport)
        self.socket = socket
        self._kind = encoding.kind
        self._heartbeat = encoding.control(protocol.Heartbeat())

    async def send(self, frame: bytes, cursor: str | None = None) -> None:
        await self.socket.send_frame(frame, self._kind)

    async def ping(self) -> None:
        await self.send(self._heartbeat)
        await self.socket.ping()


class SseTransport(_BaseTransport):
    """Server-Sent Events: every frame is the data of one event, its cursor the event's id.

    Source: https://html.spec.whatwg.org, section 9.2. Events have no names: `error` is the name of
    the browser's own event, and each frame has its type. Encoded JSON has no line breaks.
    """

    is_bidirectional = False

    def __init__(
        self, response: web.StreamResponse, transport: asyncio.Transport, peer_timeout: float
    ) -> None:
        """Let the system drop a peer that acknowledges nothing for `peer_timeout` seconds."""
        super().__init__(transport)
        self._response = response
        line = transport.get_extra_info("socket")
        if hasattr(socket, "TCP_USER_TIMEOUT") and line.family != socket.AF_UNIX:  # Linux
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * peer_timeout))

    async def send(self, frame: bytes, cursor: str | None = None) -> None:
        id = b"" if cursor is None else b"id:%b\n" % cursor.encode()
        await self._response.write(b"%bdata:%b\n\n" % (id, frame))

    async def ping(self) -> None:
        await self._response.write(b":\n\n")


DRAIN_POLL_INTERVAL = 0.05  # seconds


class FeedClient:
    """State of a connected client, of a bounded size for any behaviour of the client."""

    def __init__(
        self,
        transport: Transport,
        encoding: protocol.Encoding,
        principal: Principal,
        credential: Credential,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.transport = transport
        self.encoding = encoding
        self.principal = principal
        self.credential = credential
        self.subscription: Subscription | None = None
        self.progress: ClientPosition = START
        self.is_new = False
        self.join_generation = object()  # a new one each time the client joins the ticks
        self.behind = asyncio.Event()
        self.last_received_at = loop.time()
        self.expiry_warned_for: datetime | None = None  # expiry that the client was warned of
        self.closed: asyncio.Future[None] = loop.create_future()

    def follow(self, subscription: Subscription) -> None:
        """Replace the subscription; the client is behind until all its rows were sent."""
        self.subscription = subscription
        self.progress = subscription.start
        self.is_new = True
        self.behind.set()

    async def send_control(self, frame: msgspec.Struct) -> None:
        """Send a frame without rows. Raises ConnectionError."""
        cursor = "" if isinstance(frame, protocol.Reset) else None
        await self.transport.send(self.encoding.control(frame), cursor)

    async def send_rows(self, head: protocol.Head, rows: bytes, reached: ClientPosition) -> None:
        """Send a frame of rows, and advance the client to `reached`. Raises ConnectionError."""
        await self.transport.send(self.encoding.frame(head, rows), reached.cursor)
        self.progress = reached

    def encode_rows(self, changes: ChangePage) -> bytes:
        """Encode all rows of a page that was read for this client alone."""
        lists = (changes.batches, changes.uploads, changes.attempts)
        return self.encoding.rows(*([self.encoding.row(row) for row in rows] for rows in lists))

    async def wait_drained(self, bound: int, timeout: float) -> None:
        """Return once at most `bound` bytes are buffered.

        Raises ConnectionClosed after `timeout` seconds in which the buffer did not shrink.
        """
        loop = asyncio.get_running_loop()
        least, since = self.transport.buffered_bytes, loop.time()
        while (buffered := self.transport.buffered_bytes) > bound:
            if buffered < least:
                least, since = buffered, loop.time()
            elif loop.time() - since > timeout:
                raise protocol.ConnectionClosed(
                    protocol.CloseCode.TOO_SLOW, f"nothing was read for {timeout:g} s"
                )
            await asyncio.sleep(DRAIN_POLL_INTERVAL)

    def end_access(self) -> None:
        """Close the connection: its credential is no longer valid."""
        self.close(protocol.CloseCode.SIGNED_OUT, "the key was revoked or the session is over")

    def close(self, code: protocol.CloseCode, reason: str) -> None:
        """Make the connection's own task close it. The first reason counts."""
        if not self.closed.done():
            self.closed.set_exception(protocol.ConnectionClosed(code, reason))
            self.closed.exception()  # retrieved, even if the socket ends for another reason first
