"""Seals for ever: one process at a time, whatever number of machines have the role."""

from __future__ import annotations

import asyncio

import structlog

from infrastructure.audit.sealing import MOST, Sealer
from infrastructure.postgres.pool import Connection, connect
from infrastructure.unusable import longer_backoff

ACTIVE = 0x75707472_0008  # "uptr", 8: the advisory lock of the sealer that works

STANDBY = 2.0  # seconds between two looks at whether the active sealer is still there
LONGEST_BACKOFF = 60.0  # seconds between two tries after an error

_TRY = "SELECT pg_try_advisory_lock(%s)"

_log = structlog.get_logger(__name__)


async def run(url: str, sealer: Sealer, interval: float) -> None:
    """A seal every `interval` seconds, if anything was recorded; sooner while the log is ahead.

    An error is logged and the seal tried again: what is not sealed yet is sealed later.
    """
    backoff = 1.0
    while True:
        try:
            async with await connect(url, name="sealer") as connection:
                await _take_over(connection)
                while True:
                    await _round(connection, sealer, interval)
                    backoff = 1.0
        except Exception as error:  # whatever it was: a sealer that gives up helps nobody
            _log.warning("sealer_interrupted", error=repr(error), retry_in=backoff)
            await asyncio.sleep(backoff)
            backoff = longer_backoff(backoff, error, LONGEST_BACKOFF)


async def _round(connection: Connection, sealer: Sealer, interval: float) -> None:
    """One seal, and a rest: as long as the work took where there is more, so that a log of
    millions that was never sealed costs half a core at most."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    seal = await sealer.seal(connection)
    full = seal is not None and seal.count == MOST
    await asyncio.sleep(loop.time() - began if full else interval)


async def _take_over(connection: Connection) -> None:
    while True:
        row = await (await connection.execute(_TRY, (ACTIVE,))).fetchone()
        if row and row[0]:
            return
        await asyncio.sleep(STANDBY)
