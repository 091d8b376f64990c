"""The projector: follows the log and keeps the read model up to date."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import msgspec
import structlog
from sqlalchemy import Column

from application.append import RecordedEvent
from application.ports.event_log import EventLog, Wakeups
from application.ports.leadership import Leadership
from application.ports.read_model import ProjectedRows
from application.projection import VERSION, FoldedChanges, MergedColumns, Table, fold_changes
from application.views import AttemptView, BatchView, UploadView
from infrastructure.postgres.connection import Connection, Cursor, connect
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.postgres.locks import LEADER_TIMEOUTS, PROJECTOR_LOCK, leadership
from infrastructure.read_model import tables

# The log in chunks, the next one on its way while the last one is being worked on.

EVENTS_PER_CHUNK = 2_000  # events


async def prefetched_batches(
    log: EventLog, after: int, *, upto: int | None = None, size: int = EVENTS_PER_CHUNK
) -> AsyncGenerator[Sequence[RecordedEvent], None]:
    """Yield events beyond position `after` up to `upto`, or to the current end, in order.

    The next chunk is read while the last one is used. Close it (`contextlib.aclosing`) when leaving
    early. Raises what `EventLog.read` raises.
    """
    ahead = _reading(log, after, size)
    try:
        while events := await ahead:
            last = len(events) < size or (upto is not None and events[-1].position >= upto)
            if not last:
                ahead = _reading(log, events[-1].position, size)
            if upto is not None and events[-1].position > upto:
                events = [recorded for recorded in events if recorded.position <= upto]
            if events:
                yield events
            if last:
                return
    finally:
        ahead.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await ahead


def _reading(log: EventLog, after: int, size: int) -> asyncio.Task[Sequence[RecordedEvent]]:
    async def read() -> Sequence[RecordedEvent]:
        return await log.read(after, limit=size)

    return asyncio.create_task(read(), name="read_log_ahead")


# Writes folded changes as rows: one statement for all rows that assign the same columns.
#
# The rows of a statement travel as one JSON text that PostgreSQL takes apart; that costs this
# process a fifth of what binding every value would (docs/decisions/0003-read-model.md).

Statement: TypeAlias = tuple[bytes, list[Any]]
"""A statement, and the rows it takes as JSON."""


class WriteResult(NamedTuple):
    """Number of rows that were sent; rows to be updated may have been missing."""

    cursor: Cursor
    sent: int

    @property
    def missing(self) -> int:
        return self.sent - self.cursor.rowcount


_VIEWS = {"batches": BatchView, "uploads": UploadView, "attempts": AttemptView}
_encode = msgspec.json.Encoder().encode


async def write_rows(
    connection: Connection, target: tables.ProjectionSchema, folded: FoldedChanges
) -> list[WriteResult]:
    """Write every row; the result is known once the pipeline ends.

    The caller begins and commits, and may have opened a pipeline. Raises psycopg.Error.
    """
    return [
        WriteResult(await connection.execute(query, (_encode(rows).decode(),)), len(rows))
        for query, rows in _statements(target.schema, folded)
    ]


def _statements(schema: str, folded: FoldedChanges) -> Iterator[Statement]:
    for table, changes in folded.tables.items():
        view = _VIEWS[table]
        if changes.created:
            # The view knows what a column is that its first event does not name.
            yield _insert(schema, table), [view(**row) for row in changes.created.values()]
        for columns, rows in _alike(changes.updated.values()):
            yield _update(schema, table, columns), rows


def _alike(rows: Iterable[MergedColumns]) -> Iterable[tuple[frozenset[str], list[MergedColumns]]]:
    """Group the rows by the columns they assign: a few dozen groups for any number of rows."""
    groups: dict[frozenset[str], list[MergedColumns]] = {}
    for row in rows:
        groups.setdefault(frozenset(row), []).append(row)
    return groups.items()


@lru_cache
def _insert(schema: str, table: Table) -> bytes:
    types = _types(table)
    names = ", ".join(types)
    return (
        f"INSERT INTO {schema}.{table} ({names})"  # noqa: S608 - our own names
        f" SELECT {names} FROM json_to_recordset(%s) AS given ({_declared(types)})"
    ).encode()


@lru_cache(maxsize=1024)
def _update(schema: str, table: Table, columns: frozenset[str]) -> bytes:
    types = {name: type for name, type in _types(table).items() if name in columns}
    key = _key(table)
    assigned = ", ".join(f"{name} = given.{name}" for name in types if name not in key)
    same = " AND ".join(f"live.{name} = given.{name}" for name in key)
    return (
        f"UPDATE {schema}.{table} AS live SET {assigned}"  # noqa: S608 - our own names
        f" FROM json_to_recordset(%s) AS given ({_declared(types)}) WHERE {same}"
    ).encode()


@lru_cache
def _types(table: Table) -> Mapping[str, str]:
    columns = tables.metadata.tables[f"{tables.SCHEMA}.{table}"].columns
    return {column.name: _type(column) for column in columns}


def _type(column: Column[Any]) -> str:
    return column.type.compile(tables.POSTGRESQL).partition(" COLLATE")[0]


@lru_cache
def _key(table: Table) -> tuple[str, ...]:
    return tuple(
        column.name for column in tables.metadata.tables[f"{tables.SCHEMA}.{table}"].primary_key
    )


def _declared(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {type}" for name, type in types.items())


# Brings the rows of a target up to date with the log, each chunk and its position at once.

_VERSION = "SELECT version FROM projections WHERE name = %s"

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


class ProjectionVersionMismatch(Exception):
    """The rows were made by another version of the projection: they must not be mixed."""


async def connect_writer(url: str, *, name: str) -> Connection:
    """Open a connection for writing rows. Raises psycopg.Error."""
    return await connect(url, name=name, settings=WRITER_SETTINGS)


async def project(
    connection: Connection,
    log: EventLog,
    target: tables.ProjectionSchema,
    *,
    upto: int | None = None,
    size: int = EVENTS_PER_CHUNK,
) -> int:
    """Project up to the end of the log, or to `upto`; return the position reached.

    Raises ProjectionVersionMismatch, psycopg.Error, Unavailable.
    """
    return await project_rows(PostgresRows(connection, target), log, upto=upto, size=size)


async def project_rows(
    rows: ProjectedRows, log: EventLog, *, upto: int | None = None, size: int = EVENTS_PER_CHUNK
) -> int:
    """Project up to the end of the log, or to position `upto`; return the position reached.

    Raises Unavailable, and what the rows raise.
    """
    position = await rows.position()
    async with aclosing(prefetched_batches(log, position, upto=upto, size=size)) as ahead:
        async for events in ahead:
            folded = fold_changes(events)
            if not await rows.write(position, folded):
                return await rows.position()  # another process projects
            position = folded.position
    return position


class PostgresRows:
    """The port `ProjectedRows` on one connection. Raises ProjectionVersionMismatch, psycopg.Error.

    `target` is the live schema or one that is being rebuilt.
    """

    def __init__(self, connection: Connection, target: tables.ProjectionSchema) -> None:
        self._connection = connection
        self._target = target

    async def position(self) -> int:
        return await self._target.position.load(self._connection)

    async def write(self, after: int, folded: FoldedChanges) -> bool:
        return await _write(self._connection, self._target, after, folded)


async def _write(
    connection: Connection, target: tables.ProjectionSchema, after: int, folded: FoldedChanges
) -> bool:
    """Write the changes if the rows reflect position `after`; return whether they did."""
    async with connection.transaction():
        if await target.position.lock(connection) != after:
            return False
        if target.live:
            await _require_version(connection)
        async with connection.pipeline():
            written = await write_rows(connection, target, folded)
            await target.position.save(connection, folded.position)
            if target.live:
                await connection.execute(_TELL, (READ_MODEL, str(folded.position)))
    missing = sum(rows.missing for rows in written)
    if missing and target.live:
        # The rest goes on; `uptrail verify` names the rows, a rebuild brings them back.
        _log.error("read_model_rows_missing", rows=missing, after=after, upto=folded.position)
    return True


async def _require_version(connection: Connection) -> None:
    """Raise ProjectionVersionMismatch for rows of another version, after locking the position."""
    row = await (await connection.execute(_VERSION, (tables.NAME,))).fetchone()
    if row is None or row[0] != VERSION:
        raise ProjectionVersionMismatch(
            f"the rows are of version {row and row[0]}, this code is {VERSION}"
        )


MIN_ROUND_INTERVAL = (
    0.02  # seconds from one round to the next: many small commits are projected together
)
MAX_ROUND_INTERVAL = 0.1  # seconds of rest, which is as long as the last round took
POLL_INTERVAL = 1.0  # seconds between two attempts of a standby to become the leader


async def run(url: str, log: EventLog, wakeups: Wakeups) -> None:
    """Lead, and project events until cancelled.

    If two projectors lead by mistake, the lock on the tracked position prevents that a change is
    applied twice. Raises psycopg.Error, Unavailable, ProjectionVersionMismatch.
    """

    await follow(
        leadership(
            url,
            PROJECTOR_LOCK,
            lambda connection: PostgresRows(connection, tables.LIVE),
            name="projector",
            settings={**WRITER_SETTINGS, **LEADER_TIMEOUTS},
            poll_interval=POLL_INTERVAL,
        ),
        log,
        wakeups,
    )


async def follow(elect: Leadership[ProjectedRows], log: EventLog, wakeups: Wakeups) -> None:
    """Lead, and project until cancelled. Raises Unavailable, and what the rows raise."""

    async def lead(rows: ProjectedRows) -> None:
        while True:
            await _round(rows, log, wakeups)

    await elect(lead)


async def catch_up(url: str, log: EventLog) -> int:
    """Project once up to the end of the log; return the position reached."""
    connection = await connect_writer(url, name="projector")
    try:
        return await project(connection, log, tables.LIVE)
    finally:
        await connection.close()


async def _round(rows: ProjectedRows, log: EventLog, wakeups: Wakeups) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    position = await project_rows(rows, log)
    worked = loop.time() - began
    await asyncio.sleep(max(MIN_ROUND_INTERVAL - worked, min(worked, MAX_ROUND_INTERVAL)))
    await wakeups.wait(position)
