"""Verification: replays the log into a scratch schema, and compares it with the live rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from psycopg import IsolationLevel

from application.ports.event_log import EventLog
from infrastructure.postgres.pool import Connection, connect
from infrastructure.read_model.comparing import TABLES, Difference, compare
from infrastructure.read_model.maintenance import exclusive_maintenance
from infrastructure.read_model.projecting import project, tracked
from infrastructure.read_model.streams import Break, broken_streams
from infrastructure.read_model.targets import LIVE, Target, create, drop

# One at a time works in it, who has the lock of maintenance; what a kill left there goes first.
SCRATCH = Target("read_model_verify", "read_model_verify")

# Events a time: neither the projector's size nor a rebuild's, so that rows which depend on where
# a chunk of the log ends differ from these.
CHUNK = 7_919

MOST = 100  # differences and breaks that are named one by one


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared as of `position`, and what did not agree.

    `compared` counts the rows of each table, whichever side they are on; `differing` counts
    all rows that differ, of which `differences` names up to MOST columns; `breaks` names up to
    MOST places where a stream's versions or positions do not rise as they should.
    """

    position: int
    compared: dict[str, int]
    differing: dict[str, int]
    differences: list[Difference]
    breaks: list[Break]

    @property
    def sound(self) -> bool:
        """Whether the read model is what the log says, and the log is without gaps."""
        return not self.breaks and not any(self.differing.values())


async def verify(url: str, log: EventLog) -> Verification:
    """Compares every row and column at one position; the projector is held only briefly.

    The scratch schema is dropped in any case. Raises psycopg.Error, Unavailable.
    """
    target = SCRATCH
    async with exclusive_maintenance(url, name="verify") as writer:
        try:
            await create(writer, target)
            # No further than the live rows: the log may be ahead of their projector.
            await project(writer, log, target, upto=await tracked(writer, LIVE), size=CHUNK)
            async with _same_moment(url, writer, log, target) as (reader, position):
                return await _compared(reader, target, position)
        finally:
            if not writer.closed:
                await drop(writer, target)


async def _compared(reader: Connection, target: Target, position: int) -> Verification:
    tables = [await compare(reader, table, target.schema, MOST) for table in TABLES]
    differences = [difference for table in tables for difference in table.differences]
    return Verification(
        position=position,
        compared={table.name: table.rows for table in tables},
        differing={table.name: table.differing for table in tables},
        differences=differences[:MOST],
        breaks=await broken_streams(reader, position, MOST),
    )


@asynccontextmanager
async def _same_moment(
    url: str, writer: Connection, log: EventLog, scratch: Target
) -> AsyncIterator[tuple[Connection, int]]:
    """A connection that sees live and scratch rows at one position, and which that is.

    The live position is held still only until the scratch rows have caught up with it and a
    snapshot is taken; the comparison itself keeps nobody waiting.
    """
    async with AsyncExitStack() as stack:
        holder = await connect(url, name="verify-hold")
        stack.push_async_callback(holder.close)
        reader = await connect(url, name="verify-read")
        stack.push_async_callback(reader.close)
        await reader.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        async with reader.transaction():
            async with holder.transaction():
                position = await tracked(holder, LIVE, lock=True)
                await project(writer, log, scratch, upto=position)
                await tracked(reader, LIVE)  # takes the snapshot
            yield reader, position
