"""Runs the sweeper: one at a time, whatever number of processes have one, until cancelled."""

from __future__ import annotations

import asyncio
from itertools import cycle

import structlog

from application.sweeping import Cleared, Sweeper
from infrastructure.postgres.pool import Connection, connect
from infrastructure.unusable import longer_backoff

ACTIVE = 0x75707472_0006  # "uptr", 6: the advisory lock of the sweeper that works
NAME = "sweeper"  # its row in notification_tracking

ROUND = 1.0  # seconds between two looks at what has ended
CLEAR = 5.0  # seconds between two parts of the store: all 256 of a local one take 20 minutes
EXPIRE = 60.0  # seconds at most between two looks for uploads that nobody goes on with
FORGET = 60.0  # seconds between two looks for idempotency records that are too old
KEPT_DAYS = 7  # for which they are kept
FORGOTTEN = 1000  # of them that one step deletes
STANDBY = 2.0  # seconds between two looks at whether the active sweeper is still there
LONGEST_BACKOFF = 60.0  # seconds between two tries after an error
SHOWN = 20  # names at most in one line of the log

_BEGIN = "INSERT INTO notification_tracking VALUES (%s, 0) ON CONFLICT DO NOTHING"
_TRACKED = "SELECT notification_id FROM notification_tracking WHERE application_name = %s"
_TRACK = "UPDATE notification_tracking SET notification_id = %s WHERE application_name = %s"
_FORGET = """DELETE FROM command_answers WHERE command_id IN (
    SELECT command_id FROM command_answers
    WHERE answered_at < now() - make_interval(days => %s) ORDER BY answered_at LIMIT %s)"""
_LOCK = "SELECT pg_try_advisory_lock(%s)"

_log = structlog.get_logger(__name__)


async def run(url: str, sweeper: Sweeper) -> None:
    """Sweeps for ever. An error is logged, and the work tried again: nothing depends on when."""
    backoff = ROUND
    while True:
        try:
            async with await connect(url, name="sweeper") as connection:
                await _take_over(connection)
                backoff = ROUND
                await _sweep(connection, sweeper)
        except Exception as error:  # whatever it was: a sweeper that gives up helps nobody
            _log.warning("sweeper_interrupted", error=repr(error), retry_in=backoff)
            await asyncio.sleep(backoff)
            backoff = longer_backoff(backoff, error, LONGEST_BACKOFF)


async def _take_over(connection: Connection) -> None:
    while True:
        row = await (await connection.execute(_LOCK, (ACTIVE,))).fetchone()
        if row and row[0]:
            break
        await asyncio.sleep(STANDBY)
    await connection.execute(_BEGIN, (NAME,))


async def _sweep(connection: Connection, sweeper: Sweeper) -> None:
    loop = asyncio.get_running_loop()
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


def _tell(cleared: Cleared) -> None:
    """No event is recorded for an orphan: there is no upload that it would belong to."""
    if cleared.ended:
        _log.info("bytes_freed", count=len(cleared.ended))
    if cleared.orphans:
        count, some = len(cleared.orphans), cleared.orphans[:SHOWN]
        _log.warning("orphans_freed", count=count, blobs=some)
