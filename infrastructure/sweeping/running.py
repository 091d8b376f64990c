"""Sweeps at intervals, made by the leader of all processes with the role."""

from __future__ import annotations

import asyncio
from itertools import cycle

import structlog

from application.sweeper import Sweeper, SweepResult
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import SWEEPER_LOCK, run_as_leader

NAME = "sweeper"  # its row in notification_tracking

ROUND = 1.0  # seconds between two looks at what has ended
CLEAR = 5.0  # seconds between two parts of the store: all 256 of a local one take 20 minutes
EXPIRE = 60.0  # seconds at most between two looks for uploads that nobody goes on with
FORGET = 60.0  # seconds between two looks for idempotency records that are too old
KEPT_DAYS = 7  # for which they are kept
FORGOTTEN = 1000  # of them that one step deletes
SHOWN = 20  # names at most in one line of the log

_BEGIN = "INSERT INTO notification_tracking VALUES (%s, 0) ON CONFLICT DO NOTHING"
_TRACKED = "SELECT notification_id FROM notification_tracking WHERE application_name = %s"
_TRACK = "UPDATE notification_tracking SET notification_id = %s WHERE application_name = %s"
_FORGET = """DELETE FROM command_answers WHERE command_id IN (
    SELECT command_id FROM command_answers
    WHERE answered_at < now() - make_interval(days => %s) ORDER BY answered_at LIMIT %s)"""

_log = structlog.get_logger(__name__)


async def sweep_continuously(url: str, sweeper: Sweeper) -> None:
    """Lead, and sweep: what an error interrupts is done later. Raises psycopg.Error, Unavailable,
    OSError."""

    async def lead(connection: Connection) -> None:
        await _sweep(connection, sweeper)

    await run_as_leader(url, SWEEPER_LOCK, lead, name="sweeper")


async def _sweep(connection: Connection, sweeper: Sweeper) -> None:
    loop = asyncio.get_running_loop()
    await connection.execute(_BEGIN, (NAME,))
    row = await (await connection.execute(_TRACKED, (NAME,))).fetchone()
    position = int(row[0]) if row else 0
    parts = cycle(range(sweeper.parts))
    clear_at, expire_at = loop.time() + CLEAR, loop.time() + ROUND
    forget_at = loop.time()
    while True:
        reached = await sweeper.free_ended(position)
        if reached != position:
            position = reached
            await connection.execute(_TRACK, (position, NAME))
        if loop.time() >= expire_at:
            if expired := await sweeper.expire():
                _log.info("uploads_expired", count=expired)
            expire_at = loop.time() + min(EXPIRE, sweeper.expiry / 10)
        if loop.time() >= clear_at:
            _tell(await sweeper.clear(next(parts)))
            clear_at = loop.time() + CLEAR
        if loop.time() >= forget_at:
            more = await forget_answers(connection)
            forget_at = loop.time() + (ROUND if more else FORGET)
        await asyncio.sleep(ROUND)


async def forget_answers(connection: Connection) -> bool:
    """Delete the oldest idempotency records that are past their time; whether more may be left.

    A command that is sent again after that long is carried out again.
    """
    deleted = await connection.execute(_FORGET, (KEPT_DAYS, FORGOTTEN))
    return deleted.rowcount >= FORGOTTEN


def _tell(cleared: SweepResult) -> None:
    """No event is recorded for an orphan: there is no upload that it would belong to."""
    if cleared.ended:
        _log.info("bytes_freed", count=len(cleared.ended))
    if cleared.orphans:
        count, some = len(cleared.orphans), cleared.orphans[:SHOWN]
        _log.warning("orphans_freed", count=count, blobs=some)
