"""Batches whose failed uploads are processed again: how far each of these has come."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from application.orchestrator.members import Member
from infrastructure.jobs.rows import MEMBER, member_of
from infrastructure.jobs.selection import CHUNK
from infrastructure.postgres.pool import Connection, Cursor

BATCHES = 10  # batches a round that share the chunk

_NOWHERE = UUID(int=0)

_BEGIN = """
INSERT INTO orchestration.retries SELECT unnest(%s::uuid[]), %s
ON CONFLICT (batch) DO UPDATE SET after = EXCLUDED.after"""

# What was called off meanwhile is not tried again.
_FORGET = """
DELETE FROM orchestration.retries r USING orchestration.batches b
WHERE b.batch = r.batch AND b.state NOT IN ('open', 'sealed')"""

_PENDING = f"SELECT batch, after FROM orchestration.retries ORDER BY batch LIMIT {BATCHES}"  # noqa: S608

_FAILED = f"""
SELECT {MEMBER} FROM (
  SELECT upload FROM orchestration.active_members
  WHERE batch = %s AND kind = 'failed' AND upload > %s
  ORDER BY batch, kind, upload LIMIT %s) failed
JOIN orchestration.members m ON m.upload = failed.upload ORDER BY m.upload"""  # noqa: S608

_REACHED = "UPDATE orchestration.retries SET after = %s WHERE batch = %s"

_DONE = "DELETE FROM orchestration.retries WHERE batch = %s"


async def begin(connection: Connection, batches: Iterable[UUID]) -> None:
    """All failed uploads of these batches, from the first on, also of one that is under way."""
    if wanted := list(batches):
        await connection.execute(_BEGIN, (wanted, _NOWHERE), prepare=True)


async def ask_pending(connection: Connection) -> Cursor:
    """Whether there is anything to go on with; for `go_on`."""
    return await connection.execute(_PENDING, prepare=True)


async def go_on(connection: Connection, asked: Cursor) -> dict[UUID, list[Member]]:
    """The next failed uploads of each batch, in the order of their ids; none: it is done.

    Going by the ids, an upload is met once for each request: one that fails again stays failed.
    """
    if not await asked.fetchone():
        return {}
    await connection.execute(_FORGET, prepare=True)
    cursor = await connection.execute(_PENDING, prepare=True)
    pending = await cursor.fetchall()
    found = {}
    for batch, after in pending:
        share = CHUNK // len(pending)
        cursor = await connection.execute(_FAILED, (batch, after, share), prepare=True)
        members = found[batch] = [member_of(row) for row in await cursor.fetchall()]
        if len(members) < share:
            await connection.execute(_DONE, (batch,), prepare=True)
        else:
            await connection.execute(_REACHED, (members[-1].upload, batch), prepare=True)
    return found
