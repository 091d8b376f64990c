"""Erasures, carried out by the leader of all processes with the role."""

from __future__ import annotations

import asyncio

from infrastructure.erasure.eraser import Eraser
from infrastructure.erasure.keyring import pending_erasures
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import ERASER_LOCK, run_as_leader

STEP_PAUSE = 0.25  # seconds between two steps of erasures
POLL_INTERVAL = 2.0  # seconds between two queries for erasures that were requested
MAX_CONCURRENT_ERASURES = 100


async def erase_continuously(url: str, eraser: Eraser) -> None:
    """Lead, and carry out erasures step by step; what an error interrupts is begun again.

    Raises psycopg.Error, Unavailable, OSError.
    """

    async def lead(connection: Connection) -> None:
        while True:
            erasures = await pending_erasures(connection, MAX_CONCURRENT_ERASURES)
            idle = await eraser.step(connection, *erasures)
            await asyncio.sleep(POLL_INTERVAL if idle else STEP_PAUSE)

    await run_as_leader(url, ERASER_LOCK, lead, name="eraser")
