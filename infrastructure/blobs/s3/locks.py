"""One writer for each blob, whichever machine it runs on: S3 has no locks, so PostgreSQL lends its.

A session's advisory locks go with its connection, as a process's file locks go with the process:
nothing is left to clean up after kill -9.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Protocol

import psycopg

from application.errors import Unavailable
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.locks import blob_lock
from infrastructure.tasks import hold_lock


class Lock(Protocol):
    """A blob that is ours to write."""

    @property
    def held(self) -> bool:
        """False once another process may hold the lock."""

    async def release(self) -> None:
        """Lets go. Never raises."""


class Locks(Protocol):
    async def acquire(self, name: str) -> Lock | None:
        """Acquire the lock of the blob; return None if it is held. Raises Unavailable."""


class InProcessLocks:
    """The port `Locks`, for a bucket that one process alone writes to."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    async def acquire(self, name: str) -> Lock | None:
        if name in self._taken:
            return None
        self._taken.add(name)
        return _InProcessLock(self._taken, name)


class _InProcessLock:
    def __init__(self, taken: set[str], name: str) -> None:
        self._taken = taken
        self._name = name

    @property
    def held(self) -> bool:
        return self._name in self._taken

    async def release(self) -> None:
        self._taken.discard(self._name)


class PostgresLocks:
    """The port `Locks`, for every process that shares the database.

    All locks of a process hang on one connection. Where that is lost they are all lost, and the
    writers find out before they next store anything; the next lock opens another connection.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._taken: dict[str, Connection] = {}
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> PostgresLocks:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def acquire(self, name: str) -> Lock | None:
        taking = asyncio.ensure_future(self._take(name))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:  # release the lock if it is acquired all the same
            with suppress(Unavailable):
                if lock := await taking:
                    await lock.release()
            raise

    def held(self, name: str, connection: Connection) -> bool:
        return self._taken.get(name) is connection and not connection.closed

    async def release(self, name: str, connection: Connection) -> None:
        async with self._turn:
            if self._taken.get(name) is not connection:
                return
            del self._taken[name]
            try:
                await blob_lock(name).release(connection)
            except psycopg.Error:
                await connection.close()  # whatever it held is free again

    async def _take(self, name: str) -> Lock | None:
        async with hold_lock(self._turn):
            try:
                connection = await self._connected()
                if name in self._taken:  # the server would give a session its own lock again
                    return None
                given = await blob_lock(name).try_acquire(connection)
            except psycopg.Error as error:
                await self._lost()
                raise Unavailable(f"no lock for {name}: {error}") from error
            if not given:
                return None
            self._taken[name] = connection
            return _HeldInPostgres(self, name, connection)

    async def _connected(self) -> Connection:
        """The connection, a new one where it turns out that the last one is gone."""
        if self._connection is not None and not self._connection.closed:
            try:
                await self._connection.execute("SELECT 1")
                return self._connection
            except psycopg.Error:
                await self._lost()
        self._taken.clear()
        self._connection = await connect(self._url, name="blob-locks", patient=False)
        return self._connection

    async def _lost(self) -> None:
        if self._connection is not None:
            await self._connection.close()


class _HeldInPostgres:
    def __init__(self, locks: PostgresLocks, name: str, connection: Connection) -> None:
        self._locks = locks
        self._name = name
        self._connection = connection

    @property
    def held(self) -> bool:
        return self._locks.held(self._name, self._connection)

    async def release(self) -> None:
        await self._locks.release(self._name, self._connection)
