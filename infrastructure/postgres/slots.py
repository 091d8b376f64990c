"""The port `Slots` on advisory locks: each place of an owner is a lock that one session holds.

They go with their connection, so that nothing is left to clean up after kill -9.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import blake2b

import psycopg
from psycopg.sql import SQL

from application.errors import Unavailable
from infrastructure.postgres.pool import Connection, connect
from infrastructure.tasks import in_turn

HELD = 2000  # by one process: PostgreSQL has room for 64 locks times its connections, of everybody
PLACES = 1 << 16  # of one owner at most

# A session would be given a lock again that it holds: those are left out before one is tried, and
# OFFSET keeps the planner from turning the two around.
_TAKE = SQL("""
SELECT place FROM (
    SELECT place FROM generate_series(0, %(most)s - 1) AS place
    WHERE place <> ALL(%(held)s) OFFSET 0
) AS others
WHERE pg_try_advisory_lock(%(owner)s::bigint + place) LIMIT 1""")
_RELEASE = SQL("SELECT pg_advisory_unlock(%s)")
_TAKE_AGAIN = SQL("SELECT pg_try_advisory_lock(key) FROM unnest(%s::bigint[]) AS key")


class PostgresSlots:
    """All places of a process hang on one connection, opened when the first is asked for.

    Where that is lost others may take its places until the next one is asked for here: then those
    that are still free are taken again. Use as an async context manager.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._held: set[int] = set()  # keys of locks
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> PostgresSlots:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        async with self._turn:
            await self._disconnect()

    async def take(self, owner: str, most: int) -> PostgresSlot | None:
        taking = asyncio.ensure_future(self._take(_number(owner), min(most, PLACES)))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:  # a place that comes all the same is nobody's
            with suppress(Unavailable):
                if slot := await taking:
                    await slot.release()
            raise

    async def release(self, key: int) -> None:
        releasing = asyncio.ensure_future(self._release(key))
        await asyncio.shield(releasing)

    async def _take(self, owner: int, most: int) -> PostgresSlot | None:
        async with in_turn(self._turn):
            if len(self._held) >= HELD:
                return None
            try:
                place = await self._place(owner, most)
            except psycopg.Error:  # that the connection is lost shows when it is used
                await self._disconnect()
                try:
                    place = await self._place(owner, most)
                except psycopg.Error as error:
                    await self._disconnect()
                    raise Unavailable(f"transfers cannot be counted: {error}") from error
            if place is None:
                return None
            self._held.add(owner + place)
            return PostgresSlot(self, owner + place)

    async def _place(self, owner: int, most: int) -> int | None:
        held = [key - owner for key in self._held if owner <= key < owner + PLACES]
        asked = {"owner": owner, "most": most, "held": held}
        connection = await self._connected()
        row = await (await connection.execute(_TAKE, asked)).fetchone()
        return None if row is None else int(row[0])

    async def _release(self, key: int) -> None:
        async with self._turn:
            self._held.discard(key)
            if self._connection is None:
                return
            try:
                await self._connection.execute(_RELEASE, (key,))
            except psycopg.Error:  # whatever it held is free
                await self._disconnect()

    async def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = await connect(self._url, name="transfer-slots", patient=False)
            await self._connection.execute(_TAKE_AGAIN, (list(self._held),))
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


class PostgresSlot:
    def __init__(self, slots: PostgresSlots, key: int) -> None:
        self._slots = slots
        self._key = key

    async def release(self) -> None:
        await self._slots.release(self._key)


def _number(owner: str) -> int:
    """The key of the owner's first place; 48 of its bits are the owner's own."""
    digest = blake2b(owner.encode(), digest_size=8, person=b"uptrail slot").digest()
    return int.from_bytes(digest, "big", signed=True) & ~(PLACES - 1)
