"""The port `Standings` on the rows that projector and orchestrator keep."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from application.ports.sweeping import Idle, Standing
from infrastructure.postgres.pool import Pool

# The orchestrator's index of incoming uploads leads to the few rows that say since when.
_IDLE = """
SELECT u.id, u.version
FROM orchestration.active_members m JOIN read_model.uploads u ON u.id = m.upload
WHERE m.kind = 'incoming' AND u.state IN ('registered', 'transferring')
AND u.updated_at < %s LIMIT %s"""

_OF = "SELECT id, state, blob FROM read_model.uploads WHERE id = ANY(%s)"


class PostgresStandings:
    """As of the last projected event, which may be a moment ago."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def idle(self, before: datetime, limit: int) -> Sequence[Idle]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_IDLE, (before, limit))
            return [Idle(*row) for row in await cursor.fetchall()]

    async def of(self, uploads: Sequence[UUID]) -> dict[UUID, Standing]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_OF, (list(uploads),))
            return {id: Standing(state, blob) for id, state, blob in await cursor.fetchall()}
