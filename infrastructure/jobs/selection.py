"""Questions to the orchestrator's rows: who is next, what is to be counted, who was lost."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncCursor
from psycopg.rows import DictRow, dict_row

from application.orchestrator.members import Followed, Member
from infrastructure.jobs.queue import TASK
from infrastructure.jobs.rows import MEMBER, followed_of, member_of
from infrastructure.postgres.pool import Connection, Cursor
from infrastructure.settings import Settings

CHUNK = 500  # uploads a round that are released, called off, or retried
BATCHES = 200  # batches a round that are looked at

# Rooms are how many more may be in flight. A batch, and an owner, with more uploads ready than
# that waits until a quarter of the window is free, so that uploads travel several to a job.
_READY = f"""
WITH live AS (
  SELECT b.batch, b.owner, b.priority, %(per_batch)s::int - (
    SELECT count(*) FROM orchestration.active_members m
    WHERE m.owner = b.owner AND m.batch = b.batch AND m.kind = 'flight') AS room
  FROM orchestration.batches b
  WHERE b.state IN ('open', 'sealed') AND NOT b.paused AND (
    SELECT true FROM orchestration.active_members m
    WHERE m.batch = b.batch AND m.kind = 'received'
    ORDER BY m.batch, m.kind, m.upload LIMIT 1)
), owners AS (
  SELECT o.owner, %(per_owner)s::int - (
    SELECT count(*) FROM orchestration.active_members m
    WHERE m.owner = o.owner AND m.kind = 'flight') AS room
  FROM (SELECT DISTINCT owner FROM live) o
), ready AS (
  SELECT {MEMBER}, live.priority, live.room AS batch_room,
    row_number() OVER (PARTITION BY m.batch ORDER BY m.upload) AS turn,
    count(*) OVER (PARTITION BY m.batch) AS found
  FROM live CROSS JOIN LATERAL (
    SELECT upload FROM orchestration.active_members
    WHERE batch = live.batch AND kind = 'received'
    ORDER BY batch, kind, upload LIMIT greatest(live.room, 0) + 1) waiting
  JOIN orchestration.members m ON m.upload = waiting.upload
), ranked AS (
  SELECT *, row_number() OVER (PARTITION BY owner ORDER BY priority DESC, turn, batch) AS place,
    count(*) OVER (PARTITION BY owner) AS owner_found
  FROM ready
  WHERE turn <= batch_room AND (found <= batch_room OR batch_room >= %(batch_step)s)
)
SELECT {MEMBER} FROM ranked m JOIN owners o USING (owner)
WHERE place <= o.room AND (owner_found <= o.room OR o.room >= %(owner_step)s)
ORDER BY place, owner LIMIT {CHUNK}"""  # noqa: S608

_UNFINISHED = "('incoming', 'received', 'flight', 'retry')"

# To count a batch takes time in proportion to its uploads: a large one is counted less often.
_DUE = """coalesce(b.progressed_at, b.started_at)
    + make_interval(secs => %(interval)s * greatest(1, b.uploads / 10000.0))"""

# A batch whose last upload ended, or whose first began again, does not wait for its turn. What was
# called off is not retried. One unfinished upload tells; an EXISTS would have the planner gather
# all of them, of all batches.
_TO_SETTLE = f"""
SELECT b.*, looked.due, looked.retrying
FROM orchestration.batches b CROSS JOIN LATERAL (
  SELECT {_DUE} <= %(at)s AS due,
    (SELECT true FROM orchestration.active_members m
     WHERE m.batch = b.batch AND m.kind IN {_UNFINISHED} LIMIT 1) AS unfinished,
    b.state IN ('open', 'sealed')
      AND EXISTS (SELECT FROM orchestration.retries r WHERE r.batch = b.batch) AS retrying
) looked
WHERE b.dirty AND (looked.due
  OR (b.state IN ('sealed', 'cancelling') AND looked.unfinished IS NULL)
  OR (b.state = 'completed' AND looked.unfinished))
LIMIT {BATCHES}"""  # noqa: S608

_NEXT_DUE = f"SELECT min({_DUE}) FROM orchestration.batches b WHERE b.dirty"  # noqa: S608

# The heartbeat is judged by the clock of the server, which also wrote it.
_DEAD_JOBS = """
DELETE FROM procrastinate_jobs j WHERE j.status = 'doing' AND j.task_name = %(task)s
AND NOT EXISTS (SELECT FROM procrastinate_workers w WHERE w.id = j.worker_id
                AND w.last_heartbeat > now() - make_interval(secs => %(silence)s))"""

_DEAD_WORKERS = """
DELETE FROM procrastinate_workers WHERE last_heartbeat < now() - make_interval(secs => %(silence)s)
"""

_LOST = f"""
SELECT {MEMBER} FROM orchestration.active_members a
JOIN orchestration.members m ON m.upload = a.upload
JOIN orchestration.batches b ON b.batch = m.batch
LEFT JOIN procrastinate_jobs j ON j.id = m.job AND j.status IN ('todo', 'doing')
WHERE a.kind IN ('flight', 'retry') AND j.id IS NULL
AND b.state IN ('open', 'sealed') AND (m.state = 'processing' OR NOT b.paused)
LIMIT {CHUNK}"""  # noqa: S608

_MARK_DIRTY = "UPDATE orchestration.batches SET dirty = true WHERE batch = ANY(%s) AND NOT dirty"

_WORKERS = "SELECT count(*) FROM procrastinate_workers"


async def ask_ready(connection: Connection, settings: Settings) -> Cursor:
    """The next uploads to release: in turn among owners, then by priority, then among batches."""
    per_batch, per_owner = settings.in_flight_per_batch, settings.in_flight_per_owner
    windows = {"per_batch": per_batch, "per_owner": per_owner}
    steps = {"batch_step": max(1, per_batch // 4), "owner_step": max(1, per_owner // 4)}
    return await connection.execute(_READY, {**windows, **steps}, prepare=True)


async def ready(asked: Cursor) -> list[Member]:
    return [member_of(row) for row in await asked.fetchall()]


class ToSettle(NamedTuple):
    """A batch to look at; whether a count is due, and whether its failed uploads are retried."""

    batch: Followed
    due: bool
    retrying: bool


async def ask_to_settle(
    connection: Connection, interval: float, at: datetime
) -> AsyncCursor[DictRow]:
    """Batches to look at; a count is due `interval` seconds after the last."""
    cursor = connection.cursor(row_factory=dict_row)
    return await cursor.execute(_TO_SETTLE, {"interval": interval, "at": at}, prepare=True)


async def to_settle(asked: AsyncCursor[DictRow]) -> dict[UUID, ToSettle]:
    rows = await asked.fetchall()
    return {row["batch"]: ToSettle(followed_of(row), row["due"], row["retrying"]) for row in rows}


async def ask_next_count(connection: Connection, interval: float) -> Cursor:
    """When the next count of some batch is due; None where all have been counted."""
    return await connection.execute(_NEXT_DUE, {"interval": interval}, prepare=True)


async def next_count(asked: Cursor) -> datetime | None:
    row = await asked.fetchone()
    return row[0] if row else None


async def bury_dead_workers(connection: Connection, silence: float) -> None:
    """Ends the jobs of workers that gave no sign of life for so many seconds, and forgets them."""
    about = {"silence": silence, "task": TASK}
    await connection.execute(_DEAD_JOBS, about, prepare=True)
    await connection.execute(_DEAD_WORKERS, about, prepare=True)


async def lost(connection: Connection) -> list[Member]:
    """Uploads that should be with the workers, or on their way, and that no job carries."""
    cursor = await connection.execute(_LOST, prepare=True)
    return [member_of(row) for row in await cursor.fetchall()]


async def ask_workers(connection: Connection) -> Cursor:
    """How many workers there are."""
    return await connection.execute(_WORKERS, prepare=True)


async def count_workers(asked: Cursor) -> int:
    row = await asked.fetchone()
    return int(row[0]) if row else 0


async def mark_dirty(connection: Connection, batches: set[UUID]) -> None:
    """Uploads of these batches have changed: they are to be looked at again."""
    if batches:
        await connection.execute(_MARK_DIRTY, (list(batches),), prepare=True)
