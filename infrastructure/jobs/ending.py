"""Batches that end before their uploads have: called off by somebody, or left by everybody."""

from __future__ import annotations

from datetime import datetime

from psycopg.rows import dict_row

from application.orchestrator.members import Followed, Member
from domain.batch.state import Outcome
from infrastructure.jobs.rows import MEMBER, followed_of, member_of
from infrastructure.jobs.selection import BATCHES, CHUNK
from infrastructure.postgres.pool import Connection, Cursor

# Batches share the chunk, so that a large one does not hold up the end of the others. What the
# workers have comes first: that is what somebody who cancels wants to see stopped.
_CALLED_OFF = f"""
SELECT {MEMBER}, b.ending, b.reason
FROM (SELECT *, greatest(1, {CHUNK} / count(*) OVER ()) AS share
      FROM orchestration.batches WHERE state = 'cancelling' LIMIT {CHUNK}) b
CROSS JOIN LATERAL (
  SELECT upload FROM (
    (SELECT upload FROM orchestration.active_members
     WHERE batch = b.batch AND kind IN ('flight', 'retry'))
    UNION ALL
    (SELECT upload FROM orchestration.active_members
     WHERE batch = b.batch AND kind IN ('incoming', 'received'))
  ) unfinished LIMIT b.share) first
JOIN orchestration.members m ON m.upload = first.upload"""  # noqa: S608

# A file that has arrived is processed to its end first, whatever its batch has come to.
_IDLE = f"""
SELECT b.* FROM orchestration.batches b
WHERE b.state = 'open' AND NOT b.paused AND b.active_at < %s
AND NOT EXISTS (SELECT FROM orchestration.active_members m WHERE m.batch = b.batch
                AND m.kind IN ('received', 'flight', 'retry'))
LIMIT {BATCHES}"""  # noqa: S608


async def ask_called_off(connection: Connection) -> Cursor:
    """Unfinished uploads of batches that were cancelled or that expired; for `called_off`."""
    return await connection.execute(_CALLED_OFF, prepare=True)


async def called_off(asked: Cursor) -> list[tuple[Member, Outcome | None, str]]:
    """These uploads, and why it was."""
    return [
        (member_of(row), Outcome(row[12]) if row[12] else None, row[13])
        for row in await asked.fetchall()
    ]


async def idle(connection: Connection, before: datetime) -> list[Followed]:
    """Open batches to which nothing has happened since, and nothing is happening."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_IDLE, (before,), prepare=True)
        return [followed_of(row) for row in await cursor.fetchall()]
