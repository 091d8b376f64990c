"""The projector: follows the log and keeps the read model up to date."""

from __future__ import annotations

import asyncio

from application.ports.event_log import EventLog, Wakeups
from infrastructure.postgres.locks import LEADER_TIMEOUTS, PROJECTOR_LOCK, run_as_leader
from infrastructure.postgres.pool import Connection
from infrastructure.read_model.projecting import WRITER_SETTINGS, connect_writer, project
from infrastructure.read_model.targets import LIVE

PACE = 0.02  # seconds from one round to the next: many small commits are projected together
LONGEST_PACE = 0.1  # seconds of rest, which is as long as the last round took
POLL_INTERVAL = 1.0  # seconds between two attempts of a standby to become the leader


async def run(url: str, log: EventLog, wakeups: Wakeups) -> None:
    """Lead, and project whatever is recorded until cancelled.

    Should two projectors lead after all, the lock on the tracked position keeps a change from being
    applied twice. Raises psycopg.Error, Unavailable, OtherVersion.
    """

    async def lead(connection: Connection) -> None:
        while True:
            await _round(connection, log, wakeups)

    await run_as_leader(
        url,
        PROJECTOR_LOCK,
        lead,
        name="projector",
        settings={**WRITER_SETTINGS, **LEADER_TIMEOUTS},
        poll_interval=POLL_INTERVAL,
    )


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
