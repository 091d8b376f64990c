"""Advisory locks: every key that Uptrail uses, leader election among all processes, many locks on
one session, and the semaphore that limits the concurrent transfers of an owner.

PostgreSQL manual, section 13.3.5. The keys must not change: processes of an older version that
share the database take the same locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from types import MappingProxyType
from typing import Final, Self, TypeVar

import msgspec
import psycopg

from application.errors import Unavailable
from application.ports.leadership import Leadership
from infrastructure.postgres.connection import Connection, connect

StoreT = TypeVar("StoreT")

LEADER_POLL_INTERVAL = 2.0  # seconds between two attempts of a standby to become the leader

# The server ends the session of a leader that is stopped or cut off, so that a standby takes over.
# For leaders that execute a statement at least every second.
LEADER_TIMEOUTS: Mapping[str, str] = MappingProxyType(
    {"idle_session_timeout": "10s", "idle_in_transaction_session_timeout": "10s"}
)

_ACQUIRE = "SELECT pg_advisory_lock(%s)"
_TRY_ACQUIRE = "SELECT pg_try_advisory_lock(%s)"
_ACQUIRE_IN_TRANSACTION = "SELECT pg_advisory_xact_lock(%s)"
_RELEASE = "SELECT pg_advisory_unlock(%s)"


class AdvisoryLock(msgspec.Struct, frozen=True):
    """Exclusive lock on a 64-bit key, held by a session or a transaction of one database.

    It ends with its session however that ends, so that nothing is left to clean up after kill -9.
    A session that acquires a lock again must release it as often. Every method raises
    psycopg.Error.
    """

    key: int

    async def acquire(self, connection: Connection) -> None:
        """Wait in the server until the session holds the lock."""
        await connection.execute(_ACQUIRE, (self.key,))

    def acquire_blocking(self, connection: psycopg.Connection) -> None:
        """Like `acquire`, without an event loop."""
        connection.execute(_ACQUIRE, (self.key,))

    async def acquire_in_transaction(self, connection: Connection) -> None:
        """Wait in the server until the transaction holds the lock, which ends with it."""
        await connection.execute(_ACQUIRE_IN_TRANSACTION, (self.key,))

    async def try_acquire(self, connection: Connection) -> bool:
        """Return whether the session holds the lock now; do not wait."""
        row = await (await connection.execute(_TRY_ACQUIRE, (self.key,))).fetchone()
        return row is not None and bool(row[0])

    async def poll(self, connection: Connection, interval: float) -> None:
        """Try every `interval` seconds until the session holds the lock.

        Waiting in the server instead would hold a snapshot that VACUUM has to respect.
        """
        while not await self.try_acquire(connection):  # noqa: ASYNC110
            await asyncio.sleep(interval)

    async def release(self, connection: Connection) -> None:
        await connection.execute(_RELEASE, (self.key,))


MIGRATION_LOCK: Final = AdvisoryLock(0x75707472_0001)  # "uptr", 1
LOG_LOCK: Final = AdvisoryLock(0x75707472_0002)  # of transactions that write to the log
ORCHESTRATOR_LOCK: Final = AdvisoryLock(0x75707472_0003)
MAINTENANCE_LOCK: Final = AdvisoryLock(0x75707472_0004)  # of a rebuild or a verification
PROJECTOR_LOCK: Final = AdvisoryLock(0x75707472_0005)
SWEEPER_LOCK: Final = AdvisoryLock(0x75707472_0006)
WEBHOOKS_LOCK: Final = AdvisoryLock(0x75707472_0007)
SEALER_LOCK: Final = AdvisoryLock(0x75707472_0008)
SEAL_LOCK: Final = AdvisoryLock(0x75707472_0009)  # of the transaction that makes a log seal
ERASER_LOCK: Final = AdvisoryLock(0x75707472_0010)

# First of the two 32-bit keys of a lock that each session of a committer holds; the second one is
# random. PostgreSQL keeps locks with two keys apart from those with one.
COMMITTER_SESSIONS: Final = 0x75707472

MAX_OWNER_PERMITS: Final = 1 << 16  # keys of one owner, one after the other


def blob_lock(name: str) -> AdvisoryLock:
    """Return the lock of the writer of a blob in a bucket."""
    return AdvisoryLock(_hashed_key(name, b"uptrail blob"))


def first_permit_key(owner: str) -> int:
    """Return the first of an owner's MAX_OWNER_PERMITS keys; 48 bits of it depend on the owner."""
    return _hashed_key(owner, b"uptrail slot") & ~(MAX_OWNER_PERMITS - 1)


def _hashed_key(text: str, purpose: bytes) -> int:
    digest = blake2b(text.encode(), digest_size=8, person=purpose).digest()
    return int.from_bytes(digest, "big", signed=True)


async def run_as_leader(
    url: str,
    lock: AdvisoryLock,
    lead: Callable[[Connection], Awaitable[None]],
    *,
    name: str,
    settings: Mapping[str, str] | None = None,
    poll_interval: float = LEADER_POLL_INTERVAL,
) -> None:
    """Stand by until a new session holds `lock`, then call `lead` with its connection.

    At most one process leads, whatever number of them runs this: `lead` must do all its work in the
    connection it is given, because a lost session is a lost lock. The transaction of a session ends
    before its locks do, so what a leader has begun is committed or gone when the next one begins.
    `name` is the application_name of the session, and `settings` are its parameters.

    Returns when `lead` does. Raises what it raises, psycopg.Error, BadDatabaseUrl: the supervisor
    of the process starts it again, with backoff.
    """
    async with await connect(url, name=name, settings=settings) as connection:
        await lock.poll(connection, poll_interval)
        await lead(connection)


def leadership(
    url: str,
    lock: AdvisoryLock,
    open_store: Callable[[Connection], StoreT],
    *,
    name: str,
    settings: Mapping[str, str] | None = None,
    poll_interval: float = LEADER_POLL_INTERVAL,
) -> Leadership[StoreT]:
    """Return the election by `run_as_leader`, whose store works on the leader's connection."""

    async def elect(lead: Callable[[StoreT], Awaitable[None]]) -> None:
        async def lead_with(connection: Connection) -> None:
            await lead(open_store(connection))

        await run_as_leader(
            url, lock, lead_with, name=name, settings=settings, poll_interval=poll_interval
        )

    return elect


ACQUIRE_TIMEOUT = 10.0  # seconds to wait for other requests that use the same session

# A session would acquire a lock again that it holds: such keys are left out before one is tried,
# and OFFSET keeps the planner from reversing this order.
_TRY_ACQUIRE_ONE_OF = """
SELECT number FROM (
    SELECT number FROM generate_series(0, %(count)s - 1) AS number
    WHERE number <> ALL(%(held)s) OFFSET 0
) AS others
WHERE pg_try_advisory_lock(%(first)s::bigint + number) LIMIT 1"""
_REACQUIRE = "SELECT key FROM unnest(%s::bigint[]) AS key WHERE pg_try_advisory_lock(key)"


class SessionLock:
    """A lock that is one of many on the session of a SessionLocks."""

    def __init__(self, locks: SessionLocks, key: int) -> None:
        self._locks = locks
        self.key = key

    @property
    def is_held(self) -> bool:
        """False once another process may hold the lock."""
        return self._locks.is_held(self)

    async def release(self) -> None:
        """Release the lock, if it is held. Never raises psycopg.Error."""
        await self._locks.release(self)


class SessionLocks:
    """The advisory locks that this process holds on one session, opened with the first of them.

    When the session is lost, so are its locks, which is noticed when the session is used next.
    With `reacquire` those that are still free are then acquired again; without it, none is held
    any more. `name` is the application_name of the session. Use as an async context manager.
    """

    def __init__(
        self, url: str, *, name: str, reacquire: bool, max_locks: int | None = None
    ) -> None:
        self._url = url
        self._name = name
        self._reacquires = reacquire
        self._max_locks = max_locks
        self._connection: Connection | None = None
        self._held: dict[int, SessionLock] = {}
        self._mutex = asyncio.Lock()  # one statement at a time

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with self._mutex:
            await self._disconnect()

    def is_held(self, lock: SessionLock) -> bool:
        connected = self._connection is not None and not self._connection.closed
        return connected and self._held.get(lock.key) is lock

    async def try_acquire(self, first: int, count: int = 1) -> SessionLock | None:
        """Acquire one of the `count` keys from `first` on; return None if all of them are held.

        None as well if `max_locks` are held. A lock that is acquired although the caller was
        cancelled is released. Raises Unavailable.
        """
        acquiring = asyncio.ensure_future(self._try_acquire(first, count))
        try:
            return await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            with suppress(Unavailable):
                if lock := await acquiring:
                    await lock.release()
            raise

    async def release(self, lock: SessionLock) -> None:
        await asyncio.shield(asyncio.ensure_future(self._release(lock)))

    async def _try_acquire(self, first: int, count: int) -> SessionLock | None:
        async with self._exclusive():
            if self._max_locks is not None and len(self._held) >= self._max_locks:
                return None
            try:
                key = await self._acquire_key(first, count)
            except psycopg.Error:  # a lost session is noticed when it is used
                await self._disconnect()
                try:
                    key = await self._acquire_key(first, count)
                except psycopg.Error as error:
                    await self._disconnect()
                    raise Unavailable(f"the database grants no lock: {error}") from error
            if key is None:
                return None
            self._held[key] = SessionLock(self, key)
            return self._held[key]

    async def _acquire_key(self, first: int, count: int) -> int | None:
        connection = await self._connected()
        held = [key - first for key in self._held if first <= key < first + count]
        parameters = {"first": first, "count": count, "held": held}
        row = await (await connection.execute(_TRY_ACQUIRE_ONE_OF, parameters)).fetchone()
        return None if row is None else first + int(row[0])

    async def _release(self, lock: SessionLock) -> None:
        async with self._mutex:
            if self._held.get(lock.key) is not lock:
                return
            del self._held[lock.key]
            if self._connection is None:
                return
            try:
                await AdvisoryLock(lock.key).release(self._connection)
            except psycopg.Error:  # a lost session holds no locks
                await self._disconnect()

    async def _connected(self) -> Connection:
        """Return the session; a new one begins with the locks that could be reacquired."""
        if self._connection is not None and not self._connection.closed:
            return self._connection
        if not self._reacquires:
            self._held.clear()
        self._connection = await connect(self._url, name=self._name, patient=False)
        cursor = await self._connection.execute(_REACQUIRE, (list(self._held),))
        reacquired = {key async for (key,) in cursor}
        self._held = {key: lock for key, lock in self._held.items() if key in reacquired}
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    @asynccontextmanager
    async def _exclusive(self) -> AsyncIterator[None]:
        """Hold the mutex. Raises Unavailable after waiting ACQUIRE_TIMEOUT for it."""
        try:
            async with asyncio.timeout(ACQUIRE_TIMEOUT):
                await self._mutex.acquire()
        except TimeoutError:
            raise Unavailable("too many requests wait for the same connection") from None
        try:
            yield
        finally:
            self._mutex.release()


MAX_PROCESS_PERMITS = 2000  # PostgreSQL has room for 64 locks times its connections altogether


class PostgresTransferLimiter(SessionLocks):
    """The port `TransferLimiter`: a permit is one of `most` locks of the owner.

    Permits that were lost with a session are acquired again with the next one, if they are free.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, name="transfer-slots", reacquire=True, max_locks=MAX_PROCESS_PERMITS)

    async def acquire(self, owner: str, most: int) -> SessionLock | None:
        return await self.try_acquire(first_permit_key(owner), min(most, MAX_OWNER_PERMITS))
