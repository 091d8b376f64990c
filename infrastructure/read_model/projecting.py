"""Brings the rows of a target up to date with the log, each chunk and its position at once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from types import MappingProxyType

import structlog

from application.ports.event_log import EventLog
from application.projection import VERSION, FoldedChanges, fold_changes
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.postgres.pool import Connection, connect
from infrastructure.read_model.chunks import CHUNK, chunks
from infrastructure.read_model.rows import write_rows
from infrastructure.read_model.tables import NAME
from infrastructure.read_model.targets import Target

_POSITION = "SELECT notification_id FROM notification_tracking WHERE application_name = %s"
_VERSION = "SELECT version FROM projections WHERE name = %s"
_REACHED = "UPDATE notification_tracking SET notification_id = %s WHERE application_name = %s"

_TELL = "SELECT pg_notify(%s, %s)"

# Commits do not wait for the disk: rows and position stand or fall together, and what a crash of
# the server takes is projected again from events, which are durable. Rows are found one by one by
# their keys, also in a table that grew since it was last analyzed: to the planner that is small,
# and worth reading as a whole for each chunk.
WRITER_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "synchronous_commit": "off",
        "enable_seqscan": "off",
        "enable_mergejoin": "off",
        "enable_hashjoin": "off",
    }
)

_log = structlog.get_logger(__name__)


class OtherVersion(Exception):
    """The rows were made by another version of the projection: they must not be mixed."""


async def connect_writer(url: str, *, name: str) -> Connection:
    """Open a connection for writing rows. Raises psycopg.Error."""
    return await connect(url, name=name, settings=WRITER_SETTINGS)


async def project(
    connection: Connection,
    log: EventLog,
    target: Target,
    *,
    upto: int | None = None,
    size: int = CHUNK,
) -> int:
    """Projects up to the end of the log, or to position `upto`; returns the position reached.

    Raises OtherVersion, psycopg.Error, Unavailable.
    """
    position = await tracked(connection, target)
    async with aclosing(chunks(log, position, upto=upto, size=size)) as ahead:
        async for events in ahead:
            folded = fold_changes(events)
            if not await _write(connection, target, position, folded):
                return await tracked(connection, target)  # somebody else is at it
            position = folded.position
    return position


async def tracked(connection: Connection, target: Target, *, lock: bool = False) -> int:
    """The position the rows reflect; `lock` keeps it there until the transaction ends."""
    query = _POSITION + " FOR UPDATE" if lock else _POSITION
    row = await (await connection.execute(query, (target.name,))).fetchone()
    if row is None:
        raise LookupError(f"no position is tracked for {target.name}: is the database migrated?")
    return int(row[0])


async def _write(connection: Connection, target: Target, after: int, folded: FoldedChanges) -> bool:
    """Whether the rows were at position `after`, so that these changes were theirs."""
    async with connection.transaction():
        if await tracked(connection, target, lock=True) != after:
            return False
        if target.live:
            await _require_version(connection)
        async with connection.pipeline():
            written = await write_rows(connection, target, folded)
            await connection.execute(_REACHED, (folded.position, target.name))
            if target.live:
                await connection.execute(_TELL, (READ_MODEL, str(folded.position)))
    missing = sum(rows.missing for rows in written)
    if missing and target.live:
        # The rest goes on; `uptrail verify` names the rows, a rebuild brings them back.
        _log.error("read_model_rows_missing", rows=missing, after=after, upto=folded.position)
    return True


async def _require_version(connection: Connection) -> None:
    """After the lock, so that a rebuild by newer code, which takes it too, is noticed."""
    row = await (await connection.execute(_VERSION, (NAME,))).fetchone()
    if row is None or row[0] != VERSION:
        raise OtherVersion(f"the rows are of version {row and row[0]}, this code is {VERSION}")
