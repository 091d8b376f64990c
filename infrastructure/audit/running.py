"""Log seals at intervals, made by the leader of all processes with the role."""

from __future__ import annotations

import asyncio

from infrastructure.audit.sealer import MOST, Sealer
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import SEALER_LOCK, run_as_leader


async def seal_at_intervals(url: str, sealer: Sealer, interval: float) -> None:
    """Lead, and make a seal every `interval` seconds if anything was recorded; sooner while the
    log is ahead.

    What an error leaves unsealed is sealed later. Raises psycopg.Error, BadKey, OSError.
    """

    async def lead(connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            seal = await sealer.seal(connection)
            full = seal is not None and seal.count == MOST
            # A log of millions of events that was never sealed costs half a core at most.
            await asyncio.sleep(loop.time() - began if full else interval)

    await run_as_leader(url, SEALER_LOCK, lead, name="sealer")
