"""Erases for ever: one process at a time, whatever number of machines have the role."""

from __future__ import annotations

import asyncio

import structlog

from infrastructure.erasure.eraser import Eraser
from infrastructure.erasure.erasures import unfinished
from infrastructure.postgres.pool import Connection, connect
from infrastructure.unusable import longer_backoff

ACTIVE = 0x75707472_0010  # "uptr", 16: the advisory lock of the eraser that works

PAUSE = 0.25  # seconds between two steps
LOOK = 2.0  # seconds between two looks at whether there is something to erase, or to stand in for
LONGEST_BACKOFF = 60.0  # seconds between two tries after an error
AT_ONCE = 100  # erasures that take turns

_TRY = "SELECT pg_try_advisory_lock(%s)"

_log = structlog.get_logger(__name__)


async def run(url: str, eraser: Eraser) -> None:
    """An error is logged and the step done again: what was begun is finished."""
    backoff = 1.0
    while True:
        try:
            async with await connect(url, name="eraser") as connection:
                await _take_over(connection)
                while True:
                    await asyncio.sleep(PAUSE if await _round(connection, eraser) else LOOK)
                    backoff = 1.0
        except Exception as error:  # whatever it was: an erasure that was asked for is owed
            _log.warning("eraser_interrupted", error=repr(error), retry_in=backoff)
            await asyncio.sleep(backoff)
            backoff = longer_backoff(backoff, error, LONGEST_BACKOFF)


async def _round(connection: Connection, eraser: Eraser) -> bool:
    """One step of each; whether any is left."""
    erasures = await unfinished(connection, AT_ONCE)
    return not await eraser.step(connection, *erasures)


async def _take_over(connection: Connection) -> None:
    while True:
        row = await (await connection.execute(_TRY, (ACTIVE,))).fetchone()
        if row and row[0]:
            return
        await asyncio.sleep(LOOK)
