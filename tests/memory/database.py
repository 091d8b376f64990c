"""In-memory database server: sessions, locks, notifications and the rows that adapters share.

The adapters beside this module implement the ports of `application.ports` on it. They pass the same
contract suites as those on PostgreSQL (`tests/contracts`). Rows survive the end of a session;
locks and open transactions do not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import psycopg

from application.errors import Unavailable
from application.views import AttemptView, BatchView, UploadView
from domain.webhook.aggregate import Webhook
from infrastructure.postgres.listener import CHANNELS, Callback, ChannelWakeups

T = TypeVar("T")

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
ID_SECRET = b"secret of the in-memory database"


class Wire:
    """The way between a process and the server. This one neither delays nor fails."""

    async def request(self, name: str) -> None:
        """Carry a request; what this raises, the server has not received."""
        await asyncio.sleep(0)

    async def response(self, name: str) -> None:
        """Carry a response; what this raises, the server has done nevertheless."""
        await asyncio.sleep(0)

    def loses_commit(self) -> float | None:
        """Return after how many seconds a commit happens whose client has given up; None: it has
        not."""
        return None

    def notification(self, deliver: Callable[[], None], context: Context) -> None:
        """Carry a notification to a listener, whose context it is."""
        asyncio.get_running_loop().call_soon(deliver, context=context)


class Session:
    """Session of one process: it holds locks until it ends."""

    def __init__(self, database: MemoryDatabase) -> None:
        self.is_terminated = False
        self._database = database
        database.sessions.append(self)

    def check(self) -> None:
        """Raise psycopg.OperationalError if the session has ended."""
        if self.is_terminated:
            raise psycopg.OperationalError("the session was terminated")

    def terminate(self) -> None:
        """End the session: its locks are free, its transaction is rolled back."""
        if not self.is_terminated:
            self.is_terminated = True
            self._database.sessions.remove(self)
            for lock in list(self._database.locks.values()):
                lock.drop(self)


class ServerLock:
    """Exclusive lock of a session, first come, first served."""

    def __init__(self) -> None:
        self._holder: Session | None = None
        self._waiters: deque[tuple[Session, asyncio.Future[None]]] = deque()

    def try_acquire(self, session: Session) -> bool:
        if self._holder is None:
            self._holder = session
        return self._holder is session

    async def acquire(self, session: Session) -> None:
        """Wait until the session holds the lock. Raises psycopg.OperationalError."""
        session.check()
        if self.try_acquire(session):
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((session, granted))
        try:
            await granted
        except asyncio.CancelledError:
            self._waiters = deque(w for w in self._waiters if w[1] is not granted)
            self.release(session)
            raise

    def release(self, session: Session) -> None:
        if self._holder is not session:
            return
        self._holder = None
        while self._waiters:
            following, granted = self._waiters.popleft()
            if not granted.done():
                self._holder = following
                granted.set_result(None)
                return

    def drop(self, session: Session) -> None:
        """Release the lock, and refuse the waits of this session."""
        for waiter, granted in self._waiters:
            if waiter is session and not granted.done():
                granted.set_exception(psycopg.OperationalError("the session was terminated"))
        self._waiters = deque(w for w in self._waiters if w[0] is not session)
        self.release(session)


class StoredRow(msgspec.Struct, frozen=True):
    """Stored event, as bytes."""

    stream: UUID
    version: int
    position: int
    topic: str
    state: bytes


class JobRow(msgspec.Struct, kw_only=True):
    """Row of the job queue."""

    id: int
    args: dict[str, Any]
    status: str = "todo"
    scheduled_at: datetime | None = None
    worker: int | None = None


class Lane(msgspec.Struct):
    """Queue of the deliveries of one batch to one webhook; leased until `due_at` if `lease`."""

    due_at: datetime
    lease: UUID | None = None


class Health(msgspec.Struct):
    """Health of a webhook."""

    failing_since: datetime | None = None
    last_error: str = ""
    missed: int = 0
    missed_after: int | None = None


class MemoryDatabase:
    """Rows of all tables, and the clock of the server."""

    def __init__(self, *, seed: int = 0) -> None:
        self.random = Random(seed)
        self.sessions: list[Session] = []
        self.locks: dict[str, ServerLock] = {}
        self.listeners: list[MemoryListener] = []
        self.on_commit: list[Callable[[list[StoredRow]], None]] = []
        # The log.
        self.rows: list[StoredRow] = []
        self.streams: dict[UUID, list[StoredRow]] = {}
        self.snapshots: dict[UUID, tuple[int, str, bytes]] = {}
        self.answers: dict[UUID, tuple[str, bytes, int, datetime]] = {}
        self._positions = count(1)
        # Tracked positions by name of the component.
        self.positions: dict[str, int] = {}
        # The orchestrator.
        self.members: dict[UUID, dict[str, Any]] = {}
        self.batches: dict[UUID, dict[str, Any]] = {}
        self.retries: dict[UUID, UUID] = {}
        # The job queue.
        self.jobs: dict[int, JobRow] = {}
        self.workers: dict[int, datetime] = {}
        self.job_ids, self.worker_ids = count(1), count(1)
        # The read model.
        self.read_model: dict[str, dict[Any, BatchView | UploadView | AttemptView]] = {
            "batches": {},
            "uploads": {},
            "attempts": {},
        }
        self.epoch = "1"
        # Webhooks.
        self.endpoints: dict[UUID, Webhook] = {}
        self.secrets: dict[UUID, tuple[UUID, str, datetime]] = {}
        self.deliveries: dict[tuple[UUID, int], Any] = {}
        self.lanes: dict[tuple[UUID, UUID], Lane] = {}
        self.health: dict[UUID, Health] = {}

    def now(self) -> datetime:
        """Return the time of the server's clock."""
        return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())

    def new_id(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def lock(self, name: str) -> ServerLock:
        return self.locks.setdefault(name, ServerLock())

    def next_position(self) -> int:
        """Take a position; one whose transaction is rolled back leaves a gap."""
        return next(self._positions)

    def commit_rows(self, rows: list[StoredRow]) -> None:
        """Make rows visible, and notify listeners."""
        for row in rows:
            self.rows.append(row)
            self.streams.setdefault(row.stream, []).append(row)
        if rows:
            self.notify("uptrail_log", str(rows[-1].position))
            for callback in self.on_commit:
                callback(rows)

    def notify(self, channel: str, payload: str) -> None:
        for listener in tuple(self.listeners):
            listener.send(channel, payload)


class MemoryListener:
    """Listener of one process: wakes readers, and passes payloads to subscribers."""

    def __init__(self, database: MemoryDatabase, wire: Wire | None = None) -> None:
        self._database = database
        self._wire = wire or Wire()
        self._context = copy_context()
        self._wakeups = {channel: ChannelWakeups() for channel in CHANNELS}
        self._callbacks: dict[str, list[Callback]] = {channel: [] for channel in CHANNELS}
        database.listeners.append(self)

    def close(self) -> None:
        self._database.listeners.remove(self)

    def wakeups(self, channel: str = "uptrail_log") -> ChannelWakeups:
        return self._wakeups[channel]

    def subscribe(self, channel: str, callback: Callback) -> Callable[[], None]:
        self._callbacks[channel].append(callback)
        return lambda: self._callbacks[channel].remove(callback)

    def send(self, channel: str, payload: str) -> None:
        self._wire.notification(lambda: self._deliver(channel, payload), self._context)

    def _deliver(self, channel: str, payload: str) -> None:
        self._wakeups[channel].announce(int(payload) if payload.isdecimal() else None)
        for callback in tuple(self._callbacks[channel]):
            callback(payload)


class Client:
    """Calls of one process to the server, each atomic at the moment in which it is served."""

    def __init__(self, database: MemoryDatabase, wire: Wire | None = None) -> None:
        self.database = database
        self.wire = wire or Wire()

    async def call(self, name: str, work: Callable[[], T]) -> T:
        """Serve `work`. Raises Unavailable; whether it was served is then unknown."""
        with self._as_unavailable():
            await self.wire.request(name)
            result = work()
            await self.wire.response(name)
        return result

    @contextmanager
    def _as_unavailable(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            raise Unavailable(f"the database cannot be used: {error}") from error


class SessionClient:
    """Calls in one session, which ends with the first error of the wire."""

    def __init__(self, database: MemoryDatabase, session: Session, wire: Wire) -> None:
        self.database = database
        self.session = session
        self.wire = wire

    async def call(self, name: str, work: Callable[[], T]) -> T:
        """Serve `work`. Raises psycopg.OperationalError."""
        await self.request(name)
        result = work()
        await self.response(name)
        return result

    async def request(self, name: str) -> None:
        self.session.check()
        try:
            await self.wire.request(name)
        except psycopg.Error:
            self.session.terminate()
            raise
        self.session.check()

    async def response(self, name: str) -> None:
        try:
            await self.wire.response(name)
        except psycopg.Error:
            self.session.terminate()
            raise
