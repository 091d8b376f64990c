"""Builds the read model anew from the whole log, beside the live one, and swaps them."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import msgspec
import psycopg
import structlog

from application.ports.event_log import EventLog
from application.projection import VERSION
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.postgres.pool import Connection
from infrastructure.read_model.maintenance import exclusive_maintenance
from infrastructure.read_model.projecting import connect_writer, project, tracked
from infrastructure.read_model.tables import NAME, SCHEMA
from infrastructure.read_model.targets import LIVE, NEXT, create, create_indexes, drop

CHUNK = 10_000  # events: nobody waits for these rows, so larger chunks pay
TRIES = 50  # of the swap

# How long readers may have to queue behind a swap that waits for one of them. Less than
# PostgreSQL's deadlock_timeout (1 s): of a swap and a reader it is the swap that gives way.
PATIENCE = "500ms"

_OLD = "read_model_old"

_log = structlog.get_logger(__name__)


class Rebuilt(msgspec.Struct, frozen=True):
    """The read model was built anew: up to which position, and its new epoch."""

    position: int
    epoch: str


async def rebuild(url: str, log: EventLog) -> Rebuilt:
    """Builds, catches up and swaps; readers and the projector go on meanwhile and afterwards.

    Should it be killed on the way, the live rows stay as they were. Raises psycopg.Error,
    Unavailable.
    """
    async with exclusive_maintenance(url, name="rebuild") as connection:
        return await _rebuild(connection, log)


async def ensure_current(url: str, log: EventLog) -> Rebuilt | None:
    """Rebuilds if another version of the code made the rows; None if they are of this one."""
    connection = await connect_writer(url, name="projection-version")
    try:
        if await _version(connection) == VERSION:
            return None
    finally:
        await connection.close()
    async with exclusive_maintenance(url, name="rebuild") as connection:
        found = await _version(connection)
        if found == VERSION:  # another process was faster
            return None
        _log.info("read_model_outdated", found=found, needed=VERSION)
        return await _rebuild(connection, log)


async def _rebuild(connection: Connection, log: EventLog) -> Rebuilt:
    await create(connection, NEXT)
    try:
        await project(connection, log, NEXT, size=CHUNK)
        await create_indexes(connection, NEXT)
        rebuilt = await _swap_patiently(connection, log)
    except BaseException:
        if not connection.closed:
            await drop(connection, NEXT)
        raise
    _log.info("read_model_rebuilt", position=rebuilt.position, epoch=rebuilt.epoch)
    return rebuilt


async def _swap_patiently(connection: Connection, log: EventLog) -> Rebuilt:
    """Readers queue behind a swap that waits: so it waits briefly, and comes back."""
    for remaining in reversed(range(TRIES)):
        # What was recorded meanwhile, before the live rows are held still for the rest of it.
        await project(connection, log, NEXT)
        try:
            return await _swap(connection, log)
        except psycopg.errors.LockNotAvailable:
            if not remaining:
                raise
            await asyncio.sleep(0.1)
    raise AssertionError("the last try raises")


async def _swap(connection: Connection, log: EventLog) -> Rebuilt:
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{PATIENCE}'".encode())
        position = await tracked(connection, LIVE, lock=True)
        # Never behind the live rows: whoever has seen a position must not be taken back.
        position = max(position, await project(connection, log, NEXT, upto=position))
        await connection.execute(f"ALTER SCHEMA {SCHEMA} RENAME TO {_OLD}".encode())
        await connection.execute(f"ALTER SCHEMA {NEXT.schema} RENAME TO {SCHEMA}".encode())
        # Waits for those who read; who comes later waits in turn, and finds the new tables.
        await connection.execute(f"DROP SCHEMA {_OLD} CASCADE".encode())
        epoch = await _record(connection, position)
    return Rebuilt(position, epoch)


async def _record(connection: Connection, position: int) -> str:
    epoch = str(uuid4())
    await connection.execute(
        "UPDATE projections SET version = %s, epoch = %s, built_at = now() WHERE name = %s",
        (VERSION, epoch, NAME),
    )
    await connection.execute(
        "UPDATE notification_tracking SET notification_id = %s WHERE application_name = %s",
        (position, NAME),
    )
    await connection.execute(
        "DELETE FROM notification_tracking WHERE application_name = %s", (NEXT.name,)
    )
    await connection.execute("SELECT pg_notify(%s, %s)", (READ_MODEL, str(position)))
    return epoch


async def _version(connection: Connection) -> int | None:
    cursor = await connection.execute("SELECT version FROM projections WHERE name = %s", (NAME,))
    row = await cursor.fetchone()
    return int(row[0]) if row else None
