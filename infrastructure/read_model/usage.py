"""The port `Usage` on the rows of the read model."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from application.ports.usage import Used
from domain.upload.state import GONE
from infrastructure.postgres.pool import Pool, borrowed

_GONE = ", ".join(f"'{state}'" for state in sorted(GONE))

_USED = "SELECT coalesce(sum(coalesce(u.size, u.received)), 0)::bigint, count(*)"

_OF_BATCH = f"""
{_USED} FROM read_model.uploads u WHERE u.batch = %s AND u.state NOT IN ({_GONE})"""

# By way of the batches, whose index leads to those of one owner.
_OF_OWNER = f"""
{_USED} FROM read_model.batches b JOIN read_model.uploads u ON u.batch = b.id
WHERE b.owner = %s AND u.state NOT IN ({_GONE})"""


class PostgresUsage:
    """Takes as long as counting the files takes; whoever asks remembers the answer."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def of_owner(self, owner: str) -> Used:
        return await self._used(_OF_OWNER, owner)

    async def of_batch(self, batch: UUID) -> Used:
        return await self._used(_OF_BATCH, batch)

    async def _used(self, query: Any, key: object) -> Used:
        async with borrowed(self._pool) as connection:
            row = await (await connection.execute(query, (key,))).fetchone()
        return Used(*row) if row else Used()
