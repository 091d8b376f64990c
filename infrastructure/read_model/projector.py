"""The projector: follows the log and keeps the read model up to date, until it is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from application.ports.event_log import EventLog, Wakeups
from infrastructure.postgres.pool import Connection
from infrastructure.read_model.projecting import connect_writer, project
from infrastructure.read_model.targets import LIVE

ACTIVE = 0x75707472_0005  # "uptr", 5: the advisory lock of the projector that works
PACE = 0.02  # seconds from one round to the next: many small commits are projected together
LONGEST_PACE = 0.1  # seconds of rest, which is as long as the last round took
STANDBY = 1.0  # seconds between two looks at whether the active projector is still there
SILENCE = 10.0  # seconds after which the server ends the session of one that does nothing
LONGEST_BACKOFF = 5.0  # seconds between two tries after an error

_SILENCE = """
SELECT set_config('idle_session_timeout', silence, false),
  set_config('idle_in_transaction_session_timeout', silence, false)
FROM (SELECT %s::text) AS s (silence)"""

_log = structlog.get_logger(__name__)


async def run(url: str, log: EventLog, wakeups: Wakeups) -> None:
    """Projects whatever is recorded, for ever: cancel it to stop.

    Of several, in whatever process, one works and the others stand by; should two work after
    all, the lock on the tracked position keeps a change from being applied twice. Outlives
    restarts of the database; an error is logged, and the work tried again.
    """
    backoff = 0.05
    while True:
        try:
            async with _active(url) as connection:
                while True:
                    await _round(connection, log, wakeups)
                    backoff = 0.05
        except Exception as error:  # whatever it was: a projector that gives up helps nobody
            _log.error("projector_interrupted", error=repr(error), retry_in=backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF)


async def catch_up(url: str, log: EventLog) -> int:
    """Projects up to the end of the log, once; returns the position reached."""
    connection = await connect_writer(url, name="projector")
    try:
        return await project(connection, log, LIVE)
    finally:
        await connection.close()


async def _round(connection: Connection, log: EventLog, wakeups: Wakeups) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    position = await project(connection, log, LIVE)
    worked = loop.time() - began
    await asyncio.sleep(max(PACE - worked, min(worked, LONGEST_PACE)))
    await wakeups.wait(position)


@asynccontextmanager
async def _active(url: str) -> AsyncIterator[Connection]:
    """The connection of the active projector, once this is the one.

    One that is stopped, or cut off, must not stop the others: one that lives asks every second.
    """
    connection = await connect_writer(url, name="projector")
    try:
        await connection.execute(_SILENCE, (f"{SILENCE * 1000:.0f}ms",))
        while True:
            if await _took_over(connection):
                break
            await asyncio.sleep(STANDBY)
        yield connection
    finally:
        await connection.close()


async def _took_over(connection: Connection) -> bool:
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (ACTIVE,))
    row = await cursor.fetchone()
    return row is not None and bool(row[0])
