"""The port `Erasures` on PostgreSQL, and what the eraser asks and tells."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from application.append import append_to_stream
from application.errors import NotFound
from application.ports.erasures import Erasure
from domain.access.events import ErasureFinished, ErasureRequested
from infrastructure.event_store.writing import append_in
from infrastructure.postgres.pool import Connection, Pool, borrowed

_COLUMNS = """SELECT id, owner, reason, requested_by, requested_at, finished_at, batches, uploads
FROM audit.erasures"""
_REQUEST = """INSERT INTO audit.erasures (id, owner, reason, requested_by, requested_at)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT (owner) WHERE finished_at IS NULL DO NOTHING"""
_OPEN = f"{_COLUMNS} WHERE owner = %s AND finished_at IS NULL"
_BY_ID = f"{_COLUMNS} WHERE id = %s"
_PAGE = f"""{_COLUMNS} WHERE (%(owner)s::text IS NULL OR owner = %(owner)s)
AND (%(after)s::uuid IS NULL OR (requested_at, id) > (
    SELECT requested_at, id FROM audit.erasures WHERE id = %(after)s))
ORDER BY requested_at, id LIMIT %(limit)s"""  # noqa: S608
_UNFINISHED = f"{_COLUMNS} WHERE finished_at IS NULL ORDER BY requested_at, id LIMIT %s"
_FINISH = """UPDATE audit.erasures SET finished_at = %s, batches = %s, uploads = %s
WHERE id = %s AND finished_at IS NULL"""
_DESTROYED = """SELECT id FROM audit.owner_keys WHERE owner = %s AND destroyed_at IS NOT NULL
ORDER BY made_at, id"""

BY = "eraser"  # who finishes an erasure


class PostgresErasures:
    """Asks through the pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def request(self, erasure: Erasure) -> Erasure:
        values = (
            erasure.id,
            erasure.owner,
            erasure.reason,
            erasure.requested_by,
            erasure.requested_at,
        )
        async with asking(self._pool) as connection:
            while True:  # one that was open may be finished between the two
                async with connection.transaction():
                    inserted = await connection.execute(_REQUEST, values)
                    if inserted.rowcount:
                        await append_in(
                            connection, append_to_stream(erasure.id, 0, _requested(erasure))
                        )
                if found := await _erasures(connection, _OPEN, (erasure.owner,)):
                    return found[0]

    async def get(self, id: UUID) -> Erasure:
        async with asking(self._pool) as connection:
            if found := await _erasures(connection, _BY_ID, (id,)):
                return found[0]
        raise NotFound(f"no erasure {id}")

    async def page(self, *, owner: str | None, after: UUID | None, limit: int) -> Sequence[Erasure]:
        values = {"owner": owner, "after": after, "limit": limit}
        async with asking(self._pool) as connection:
            return await _erasures(connection, _PAGE, values)


async def unfinished(connection: Connection, limit: int) -> list[Erasure]:
    """What is to be carried out, the oldest first."""
    return await _erasures(connection, _UNFINISHED, (limit,))


async def finish(
    connection: Connection, erasure: Erasure, at: datetime, batches: int, uploads: int
) -> None:
    """Mark it as done, and record that with the keys that were destroyed."""
    async with connection.transaction():
        finished = await connection.execute(_FINISH, (at, batches, uploads, erasure.id))
        if not finished.rowcount:
            return
        cursor = await connection.execute(_DESTROYED, (erasure.owner,))
        keys = tuple(row[0] for row in await cursor.fetchall())
        event = ErasureFinished(at=at, by=BY, batches=batches, uploads=uploads, keys=keys)
        await append_in(connection, append_to_stream(erasure.id, None, event))


def _requested(erasure: Erasure) -> ErasureRequested:
    return ErasureRequested(
        at=erasure.requested_at,
        by=erasure.requested_by,
        owner=erasure.owner,
        reason=erasure.reason,
    )


@asynccontextmanager
async def asking(pool: Pool) -> AsyncIterator[Connection]:
    """A connection for questions. Raises Unavailable."""
    async with borrowed(pool) as connection:
        yield connection


async def _erasures(connection: Connection, query: Any, values: Any) -> list[Erasure]:
    names = Erasure.__struct_fields__
    cursor = await connection.execute(query, values)
    return [Erasure(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall()]
