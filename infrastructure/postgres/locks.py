"""Advisory locks: every key that Uptrail uses, and leader election among all processes.

PostgreSQL manual, section 13.3.5. The keys must not change: processes of an older version that
share the database take the same locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b
from types import MappingProxyType
from typing import Final

import msgspec
import psycopg

from infrastructure.postgres.connection import Connection, connect

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
