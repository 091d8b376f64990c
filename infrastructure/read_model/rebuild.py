"""Builds the read model anew from the whole log, beside the live one, and swaps them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import msgspec
import psycopg
import structlog
from psycopg import IsolationLevel

from application.ports.event_log import EventLog
from application.projection import VERSION
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.postgres.locks import MAINTENANCE_LOCK
from infrastructure.postgres.schema import NewerDatabase
from infrastructure.read_model.projector import connect_writer, project
from infrastructure.read_model.tables import (
    LIVE,
    NAME,
    NEXT,
    SCHEMA,
    ProjectionSchema,
    create,
    create_indexes,
    drop,
    metadata,
)

# Compares a table of the live read model with its counterpart in another schema.

TABLES = ("batches", "uploads", "attempts")


class Difference(msgspec.Struct, frozen=True):
    """Difference of one value between the read model and the log.

    `column` is None if the whole row is missing on one side, whose value is None then.
    """

    table: str
    key: str
    column: str | None
    live: Any
    replayed: Any


class TableDiff(msgspec.Struct, frozen=True):
    """Rows of a table on either side, the number that differ, and some differences."""

    name: str
    rows: int
    differing: int
    differences: list[Difference]


async def diff_table(connection: Connection, table: str, schema: str, most: int) -> TableDiff:
    """Compare every row and column; return the differences of up to `most` rows."""
    sides = _Sides(table, schema)
    counted = await (await connection.execute(sides.counts)).fetchone()
    assert counted is not None  # an aggregate always answers
    rows, differing = counted
    differences: list[Difference] = []
    if differing:
        cursor = await connection.execute(sides.differing, (most,))
        for key, live, replayed in await cursor.fetchall():
            differences += _differences(table, key, live, replayed)
    return TableDiff(table, rows, differing, differences)


class _Sides:
    """The statements over both sides of a table, joined by key."""

    def __init__(self, table: str, schema: str) -> None:
        model = metadata.tables[f"{SCHEMA}.{table}"]
        key = ", ".join(column.name for column in model.primary_key)
        live = ", ".join(f"live.{column.name}" for column in model.columns)
        replayed = ", ".join(f"replayed.{column.name}" for column in model.columns)
        joined = f"{SCHEMA}.{table} AS live FULL JOIN {schema}.{table} AS replayed USING ({key})"
        differ = f"ROW({live}) IS DISTINCT FROM ROW({replayed})"
        # Every name in here is ours.
        self.counts = f"SELECT count(*), count(*) FILTER (WHERE {differ}) FROM {joined}".encode()  # noqa: S608
        self.differing = (
            f"SELECT concat_ws('/', {key}), to_jsonb(live), to_jsonb(replayed)"  # noqa: S608
            f" FROM {joined} WHERE {differ} ORDER BY {key} LIMIT %s"
        ).encode()


def _differences(
    table: str, key: str, live: dict[str, Any] | None, replayed: dict[str, Any] | None
) -> list[Difference]:
    if live is None or replayed is None:
        return [Difference(table, key, None, live, replayed)]
    return [
        Difference(table, key, column, live[column], replayed[column])
        for column in live
        if live[column] != replayed[column]
    ]


REBUILD_CHUNK_EVENTS = 10_000  # events: no request waits for these rows, so larger chunks pay off
MAX_SWAP_TRIES = 50  # of the swap

# How long readers may have to queue behind a swap that waits for one of them. Less than
# PostgreSQL's deadlock_timeout (1 s): of a swap and a reader it is the swap that gives way.
PATIENCE = "500ms"

_OLD = "read_model_old"

_log = structlog.get_logger(__name__)


class Rebuilt(msgspec.Struct, frozen=True):
    """Result of a rebuild: its position and its new epoch."""

    position: int
    epoch: str


async def rebuild(url: str, log: EventLog) -> Rebuilt:
    """Build the read model beside the live one, catch up, and swap the two.

    Readers and the projector continue meanwhile. If the process is killed, the live rows stay as
    they were. Raises psycopg.Error, Unavailable.
    """
    async with exclusive_maintenance(url, name="rebuild") as connection:
        return await _rebuild(connection, log)


async def rebuild_if_outdated(url: str, log: EventLog) -> Rebuilt | None:
    """Rebuild if an earlier version of the code made the rows; None if they are of this one.

    Raises NewerDatabase if a later version made them, also psycopg.Error, Unavailable: two versions
    of a rolling upgrade would otherwise replace the rows of each other.
    """
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
        if found is not None and found > VERSION:
            raise NewerDatabase(f"the rows have version {found}, and this code has {VERSION}")
        _log.info("read_model_outdated", found=found, needed=VERSION)
        return await _rebuild(connection, log)


async def _rebuild(connection: Connection, log: EventLog) -> Rebuilt:
    await create(connection, NEXT)
    try:
        await project(connection, log, NEXT, size=REBUILD_CHUNK_EVENTS)
        await create_indexes(connection, NEXT)
        rebuilt = await _swap_patiently(connection, log)
    except BaseException:
        if not connection.closed:
            await drop(connection, NEXT)
        raise
    _log.info("read_model_rebuilt", position=rebuilt.position, epoch=rebuilt.epoch)
    return rebuilt


async def _swap_patiently(connection: Connection, log: EventLog) -> Rebuilt:
    """Retry the swap with a short lock timeout, because readers queue behind a waiting swap."""
    for remaining in reversed(range(MAX_SWAP_TRIES)):
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
        position = await LIVE.position.lock(connection)
        # Never behind the live rows: a client that has seen a position must not go back.
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
    await LIVE.position.save(connection, position)
    await NEXT.position.delete(connection)
    await connection.execute("SELECT pg_notify(%s, %s)", (READ_MODEL, str(position)))
    return epoch


async def _version(connection: Connection) -> int | None:
    cursor = await connection.execute("SELECT version FROM projections WHERE name = %s", (NAME,))
    row = await cursor.fetchone()
    return int(row[0]) if row else None


# Checks the log itself: the versions of a stream are 1, 2, 3 and so on, its positions rise.

_BREAKS = """
SELECT stream, version, position, version_before, position_before
FROM (SELECT originator_id AS stream, originator_version AS version, notification_id AS position,
             lag(originator_version, 1, 0::bigint) OVER life AS version_before,
             lag(notification_id, 1, 0::bigint) OVER life AS position_before
      FROM stored_events WHERE notification_id <= %s
      WINDOW life AS (PARTITION BY originator_id ORDER BY originator_version)) AS events
WHERE version <> version_before + 1 OR position <= position_before
ORDER BY position LIMIT %s"""


class VersionGap(msgspec.Struct, frozen=True):
    """An event that does not follow the one before it in its stream (0: there is none)."""

    stream: UUID
    version: int
    position: int
    version_before: int
    position_before: int


async def find_version_gaps(connection: Connection, upto: int, most: int) -> list[VersionGap]:
    """Return the first version gaps up to a position, at most `most`."""
    cursor = await connection.execute(_BREAKS, (upto, most))
    return [VersionGap(*row) for row in await cursor.fetchall()]


# Verification: replays the log into a scratch schema, and compares it with the live rows.

# One at a time works in it, who has the lock of maintenance; what a kill left there goes first.
SCRATCH = ProjectionSchema("read_model_verify", "read_model_verify")

# Events a time: neither the projector's size nor a rebuild's, so that rows which depend on where
# a chunk of the log ends differ from these.
VERIFY_CHUNK_EVENTS = 7_919

MAX_DIFFERENCES = 100  # differences and breaks that are named one by one


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """Result of the comparison of the read model with the log as of `position`.

    `compared` counts the rows per table on either side; `differing` counts all rows that differ.
    `differences` and `breaks` (places where versions or positions of a stream do not rise) are
    truncated lists.
    """

    position: int
    compared: dict[str, int]
    differing: dict[str, int]
    differences: list[Difference]
    breaks: list[VersionGap]

    @property
    def sound(self) -> bool:
        """True if the read model agrees with the log, and the log has no gaps."""
        return not self.breaks and not any(self.differing.values())


async def verify(url: str, log: EventLog) -> Verification:
    """Compare every row and column at one position; the projector is paused only briefly.

    The scratch schema is dropped in any case. Raises psycopg.Error, Unavailable.
    """
    target = SCRATCH
    async with exclusive_maintenance(url, name="verify") as writer:
        try:
            await create(writer, target)
            # No further than the live rows: the log may be ahead of their projector.
            await project(
                writer,
                log,
                target,
                upto=await LIVE.position.load(writer),
                size=VERIFY_CHUNK_EVENTS,
            )
            async with _same_moment(url, writer, log, target) as (reader, position):
                return await _compared(reader, target, position)
        finally:
            if not writer.closed:
                await drop(writer, target)


async def _compared(reader: Connection, target: ProjectionSchema, position: int) -> Verification:
    tables = [await diff_table(reader, table, target.schema, MAX_DIFFERENCES) for table in TABLES]
    differences = [difference for table in tables for difference in table.differences]
    return Verification(
        position=position,
        compared={table.name: table.rows for table in tables},
        differing={table.name: table.differing for table in tables},
        differences=differences[:MAX_DIFFERENCES],
        breaks=await find_version_gaps(reader, position, MAX_DIFFERENCES),
    )


@asynccontextmanager
async def _same_moment(
    url: str, writer: Connection, log: EventLog, scratch: ProjectionSchema
) -> AsyncIterator[tuple[Connection, int]]:
    """Yield a connection with a snapshot of live and scratch rows, and its position.

    The projector is paused only until the scratch rows have caught up and the snapshot is taken;
    the comparison itself blocks no writer.
    """
    async with AsyncExitStack() as stack:
        holder = await connect(url, name="verify-hold")
        stack.push_async_callback(holder.close)
        reader = await connect(url, name="verify-read")
        stack.push_async_callback(reader.close)
        await reader.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        async with reader.transaction():
            async with holder.transaction():
                position = await LIVE.position.lock(holder)
                await project(writer, log, scratch, upto=position)
                await LIVE.position.load(reader)  # takes the snapshot
            yield reader, position


@asynccontextmanager
async def exclusive_maintenance(url: str, *, name: str) -> AsyncIterator[Connection]:
    """Wait for other rebuilds and verifications of any process, and return a connection for writing
    rows."""
    connection = await connect_writer(url, name=name)
    try:
        await MAINTENANCE_LOCK.acquire(connection)
        yield connection
    finally:
        await connection.close()
