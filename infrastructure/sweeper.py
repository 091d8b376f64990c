"""Sweeps at intervals, made by the leader of all processes with the role."""

from __future__ import annotations

import asyncio
from itertools import cycle

import structlog

from application.ports.leadership import Leadership
from application.sweeper import Sweeper, SweeperRecords, SweepResult
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import SWEEPER_LOCK, leadership
from infrastructure.postgres.tracked_positions import SWEEPER_POSITION

POLL_INTERVAL = 1.0  # seconds between two queries for uploads that have ended
CLEAR_INTERVAL = 5.0  # seconds between two parts of the store: 20 minutes for 256 of a local one
MAX_EXPIRE_INTERVAL = 60.0  # seconds between two queries for uploads that were abandoned
FORGET_INTERVAL = 60.0  # seconds between two deletions of old idempotency records
IDEMPOTENCY_RETENTION_DAYS = 7
IDEMPOTENCY_RECORDS_PER_STEP = 1000
MAX_LOGGED_BLOBS = 20  # names in one line of the log

_FORGET = """DELETE FROM command_answers WHERE command_id IN (
    SELECT command_id FROM command_answers
    WHERE answered_at < now() - make_interval(days => %s) ORDER BY answered_at LIMIT %s)"""

_log = structlog.get_logger(__name__)


async def sweep_continuously(url: str, sweeper: Sweeper) -> None:
    """Lead, and sweep: what an error interrupts is done later. Raises psycopg.Error, Unavailable,
    OSError."""
    await sweep(leadership(url, SWEEPER_LOCK, PostgresSweeperRecords, name="sweeper"), sweeper)


async def sweep(elect: Leadership[SweeperRecords], sweeper: Sweeper) -> None:
    """Lead, and sweep until cancelled. Raises Unavailable, OSError, and what the records raise."""

    async def lead(records: SweeperRecords) -> None:
        await _sweep(records, sweeper)

    await elect(lead)


class PostgresSweeperRecords:
    """The port `SweeperRecords` on one connection. Every method raises psycopg.Error."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def position(self) -> int:
        await SWEEPER_POSITION.create(self._connection)
        return await SWEEPER_POSITION.load(self._connection)

    async def save_position(self, position: int) -> None:
        await SWEEPER_POSITION.save(self._connection, position)

    async def delete_old_idempotency_records(self) -> bool:
        return await delete_old_idempotency_records(self._connection)


async def _sweep(records: SweeperRecords, sweeper: Sweeper) -> None:
    loop = asyncio.get_running_loop()
    position = await records.position()
    parts = cycle(range(sweeper.parts))
    clear_at, expire_at = loop.time() + CLEAR_INTERVAL, loop.time() + POLL_INTERVAL
    forget_at = loop.time()
    while True:
        reached = await sweeper.free_ended(position)
        if reached != position:
            position = reached
            await records.save_position(position)
        if loop.time() >= expire_at:
            if expired := await sweeper.expire():
                _log.info("uploads_expired", count=expired)
            expire_at = loop.time() + min(MAX_EXPIRE_INTERVAL, sweeper.expiry / 10)
        if loop.time() >= clear_at:
            _log_result(await sweeper.clear(next(parts)))
            clear_at = loop.time() + CLEAR_INTERVAL
        if loop.time() >= forget_at:
            more = await records.delete_old_idempotency_records()
            forget_at = loop.time() + (POLL_INTERVAL if more else FORGET_INTERVAL)
        await asyncio.sleep(POLL_INTERVAL)


async def delete_old_idempotency_records(connection: Connection) -> bool:
    """Delete the oldest records beyond their retention; return whether more may be left.

    A command that is sent again after that time is carried out again.
    """
    deleted = await connection.execute(
        _FORGET, (IDEMPOTENCY_RETENTION_DAYS, IDEMPOTENCY_RECORDS_PER_STEP)
    )
    return deleted.rowcount >= IDEMPOTENCY_RECORDS_PER_STEP


def _log_result(cleared: SweepResult) -> None:
    """Log what was freed. No event is recorded for an orphan, because it belongs to no upload."""
    if cleared.ended:
        _log.info("bytes_freed", count=len(cleared.ended))
    if cleared.orphans:
        count, some = len(cleared.orphans), cleared.orphans[:MAX_LOGGED_BLOBS]
        _log.warning("orphans_freed", count=count, blobs=some)
