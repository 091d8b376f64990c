"""Limit on the concurrent transfers of an owner in all processes: a semaphore of advisory locks.

Each permit is a lock that one session holds, so that nothing is left to clean up after kill -9.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import psycopg
from psycopg.sql import SQL

from application.errors import Unavailable
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.locks import MAX_OWNER_PERMITS, AdvisoryLock, first_permit_key
from infrastructure.tasks import hold_lock

MAX_PROCESS_PERMITS = 2000  # PostgreSQL has room for 64 locks times its connections altogether

# A session would be given a lock again that it holds: those are left out before one is tried, and
# OFFSET keeps the planner from turning the two around.
_TRY_ACQUIRE = SQL("""
SELECT number FROM (
    SELECT number FROM generate_series(0, %(most)s - 1) AS number
    WHERE number <> ALL(%(held)s) OFFSET 0
) AS others
WHERE pg_try_advisory_lock(%(first)s::bigint + number) LIMIT 1""")
_REACQUIRE = SQL("SELECT pg_try_advisory_lock(key) FROM unnest(%s::bigint[]) AS key")


class PostgresTransferLimiter:
    """The port `Slots` on advisory locks.

    One connection, opened with the first permit, holds all permits of a process. When it is lost,
    other processes may acquire them, until the next permit is acquired here: then those that are
    still free are acquired again. Use as an async context manager.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._held: set[int] = set()  # keys of locks
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> PostgresTransferLimiter:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with self._lock:
            await self._disconnect()

    async def acquire(self, owner: str, most: int) -> PostgresTransferPermit | None:
        number = min(most, MAX_OWNER_PERMITS)
        acquiring = asyncio.ensure_future(self._take(first_permit_key(owner), number))
        try:
            return await asyncio.shield(acquiring)
        except asyncio.CancelledError:  # a permit that is acquired all the same is not used
            with suppress(Unavailable):
                if permit := await acquiring:
                    await permit.release()
            raise

    async def release(self, key: int) -> None:
        releasing = asyncio.ensure_future(self._release(key))
        await asyncio.shield(releasing)

    async def _take(self, first: int, most: int) -> PostgresTransferPermit | None:
        async with hold_lock(self._lock):
            if len(self._held) >= MAX_PROCESS_PERMITS:
                return None
            try:
                key = await self._try_acquire(first, most)
            except psycopg.Error:  # a lost connection is found out when it is used
                await self._disconnect()
                try:
                    key = await self._try_acquire(first, most)
                except psycopg.Error as error:
                    await self._disconnect()
                    raise Unavailable(f"transfers cannot be counted: {error}") from error
            if key is None:
                return None
            self._held.add(key)
            return PostgresTransferPermit(self, key)

    async def _try_acquire(self, first: int, most: int) -> int | None:
        """Return the key of a permit, None if all of them are held."""
        end = first + MAX_OWNER_PERMITS
        held = [key - first for key in self._held if first <= key < end]
        connection = await self._connected()
        parameters = {"first": first, "most": most, "held": held}
        row = await (await connection.execute(_TRY_ACQUIRE, parameters)).fetchone()
        return None if row is None else first + int(row[0])

    async def _release(self, key: int) -> None:
        async with self._lock:
            self._held.discard(key)
            if self._connection is None:
                return
            try:
                await AdvisoryLock(key).release(self._connection)
            except psycopg.Error:  # a lost session holds no locks
                await self._disconnect()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._url, name="transfer-slots", patient=False)
            await self._connection.execute(_REACQUIRE, (list(self._held),))
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


class PostgresTransferPermit:
    """Permit for one transfer, held until it is released."""

    def __init__(self, limiter: PostgresTransferLimiter, key: int) -> None:
        self._limiter = limiter
        self._key = key

    async def release(self) -> None:
        await self._limiter.release(self._key)
