"""Selection of the uploads and batches that a round of the orchestrator decides on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

from psycopg import AsyncCursor
from psycopg.rows import dict_row

from application.orchestrator import UploadToCancel
from application.ports.orchestration import BatchSelection
from application.tracked_batches import TrackedBatch, TrackedUpload
from domain.batch.state import Outcome
from infrastructure.jobs.queue import TASK
from infrastructure.jobs.tables import UPLOAD_COLUMNS, batch_from_row, upload_from_row
from infrastructure.postgres.connection import Connection
from infrastructure.settings import Settings

T = TypeVar("T")

MAX_ROUND_UPLOADS = 500  # that are enqueued, cancelled, or retried
MAX_ROUND_BATCHES = 200  # that are counted
MAX_RETRIED_BATCHES = 10  # in a round, which share its uploads

_NIL = UUID(int=0)  # before every upload

# A room is how many more uploads may be in flight. A batch, or an owner, with more uploads ready
# than that waits until a quarter of its window is free, so that jobs hold several uploads.
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
  SELECT {UPLOAD_COLUMNS}, live.priority, live.room AS batch_room,
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
SELECT {UPLOAD_COLUMNS} FROM ranked m JOIN owners o USING (owner)
WHERE place <= o.room AND (owner_found <= o.room OR o.room >= %(owner_step)s)
ORDER BY place, owner LIMIT {MAX_ROUND_UPLOADS}"""  # noqa: S608

_UNFINISHED = "('incoming', 'received', 'flight', 'retry')"

# To count a batch takes time in proportion to its uploads: a large one is counted less often.
_DUE = """coalesce(b.progressed_at, b.started_at)
    + make_interval(secs => %(interval)s * greatest(1, b.uploads / 10000.0))"""

# A batch whose last upload ended, or whose first began again, does not wait until a count is due.
# Cancelled and expired batches are not retried. One unfinished upload is enough to know; for an
# EXISTS the planner would gather all of them, of all batches.
_TO_COUNT = f"""
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
LIMIT {MAX_ROUND_BATCHES}"""  # noqa: S608

_NEXT_COUNT = f"SELECT min({_DUE}) FROM orchestration.batches b WHERE b.dirty"  # noqa: S608

# Batches share the limit, so that a large one does not delay the end of the others. Uploads in
# progress come first: a user who cancels wants those to stop.
_TO_CANCEL = f"""
SELECT {UPLOAD_COLUMNS}, b.ending, b.reason
FROM (SELECT *, greatest(1, {MAX_ROUND_UPLOADS} / count(*) OVER ()) AS share
      FROM orchestration.batches WHERE state = 'cancelling' LIMIT {MAX_ROUND_UPLOADS}) b
CROSS JOIN LATERAL (
  SELECT upload FROM (
    (SELECT upload FROM orchestration.active_members
     WHERE batch = b.batch AND kind IN ('flight', 'retry'))
    UNION ALL
    (SELECT upload FROM orchestration.active_members
     WHERE batch = b.batch AND kind IN ('incoming', 'received'))
  ) unfinished LIMIT b.share) first
JOIN orchestration.members m ON m.upload = first.upload"""  # noqa: S608

# A batch does not expire while files that have arrived are processed.
_IDLE = f"""
SELECT b.* FROM orchestration.batches b
WHERE b.state = 'open' AND NOT b.paused AND b.active_at < %s
AND NOT EXISTS (SELECT FROM orchestration.active_members m WHERE m.batch = b.batch
                AND m.kind IN ('received', 'flight', 'retry'))
LIMIT {MAX_ROUND_BATCHES}"""  # noqa: S608

_START_RETRY = """
INSERT INTO orchestration.retries SELECT unnest(%s::uuid[]), %s
ON CONFLICT (batch) DO UPDATE SET after = EXCLUDED.after"""

# Cancelled and expired batches are not retried.
_DROP_RETRIES = """
DELETE FROM orchestration.retries r USING orchestration.batches b
WHERE b.batch = r.batch AND b.state NOT IN ('open', 'sealed')"""

_BATCH_RETRIES = (
    f"SELECT batch, after FROM orchestration.retries ORDER BY batch LIMIT {MAX_RETRIED_BATCHES}"  # noqa: S608
)

_FAILED = f"""
SELECT {UPLOAD_COLUMNS} FROM (
  SELECT upload FROM orchestration.active_members
  WHERE batch = %s AND kind = 'failed' AND upload > %s
  ORDER BY batch, kind, upload LIMIT %s) failed
JOIN orchestration.members m ON m.upload = failed.upload ORDER BY m.upload"""  # noqa: S608

_SAVE_RETRY = "UPDATE orchestration.retries SET after = %s WHERE batch = %s"

_END_RETRY = "DELETE FROM orchestration.retries WHERE batch = %s"

# The clock of the server also wrote the heartbeats.
_PRUNE_JOBS = """
DELETE FROM procrastinate_jobs j WHERE j.status = 'doing' AND j.task_name = %(task)s
AND NOT EXISTS (SELECT FROM procrastinate_workers w WHERE w.id = j.worker_id
                AND w.last_heartbeat > now() - make_interval(secs => %(silence)s))"""

_PRUNE_WORKERS = """
DELETE FROM procrastinate_workers WHERE last_heartbeat < now() - make_interval(secs => %(silence)s)
"""

_LOST = f"""
SELECT {UPLOAD_COLUMNS} FROM orchestration.active_members a
JOIN orchestration.members m ON m.upload = a.upload
JOIN orchestration.batches b ON b.batch = m.batch
LEFT JOIN procrastinate_jobs j ON j.id = m.job AND j.status IN ('todo', 'doing')
WHERE a.kind IN ('flight', 'retry') AND j.id IS NULL
AND b.state IN ('open', 'sealed') AND (m.state = 'processing' OR NOT b.paused)
LIMIT {MAX_ROUND_UPLOADS}"""  # noqa: S608

_WORKERS = "SELECT count(*) FROM procrastinate_workers"


class PipelinedQuery(Generic[T]):
    """Query that is executed within a pipeline; its result is fetched after the pipeline."""

    def __init__(self, cursor: AsyncCursor[Any], read: Callable[[list[Any]], T]) -> None:
        self._cursor = cursor
        self._read = read

    async def fetch(self) -> T:
        return self._read(await self._cursor.fetchall())


async def select_ready(
    connection: Connection, settings: Settings
) -> PipelinedQuery[list[TrackedUpload]]:
    """Select the next uploads to enqueue: in turn among owners, then by priority, then batches."""
    per_batch, per_owner = settings.in_flight_per_batch, settings.in_flight_per_owner
    windows = {"per_batch": per_batch, "per_owner": per_owner}
    steps = {"batch_step": max(1, per_batch // 4), "owner_step": max(1, per_owner // 4)}
    cursor = await connection.execute(_READY, {**windows, **steps}, prepare=True)
    return PipelinedQuery(cursor, _uploads)


async def select_to_cancel(connection: Connection) -> PipelinedQuery[list[UploadToCancel]]:
    """Select unfinished uploads of batches that were cancelled or have expired."""
    cursor = await connection.execute(_TO_CANCEL, prepare=True)
    return PipelinedQuery(
        cursor,
        lambda rows: [
            UploadToCancel(
                upload_from_row(row[:-2]), Outcome(row[-2]) if row[-2] else None, row[-1]
            )
            for row in rows
        ],
    )


async def select_to_count(
    connection: Connection, interval: float, at: datetime
) -> PipelinedQuery[list[BatchSelection]]:
    """Select batches to count; a count is due `interval` seconds after the last."""
    cursor = connection.cursor(row_factory=dict_row)
    await cursor.execute(_TO_COUNT, {"interval": interval, "at": at}, prepare=True)
    return PipelinedQuery(
        cursor,
        lambda rows: [
            BatchSelection(batch_from_row(row), row["due"], row["retrying"]) for row in rows
        ],
    )


async def select_next_count(
    connection: Connection, interval: float
) -> PipelinedQuery[datetime | None]:
    """Select when the next count of some batch is due; None where all have been counted."""
    cursor = await connection.execute(_NEXT_COUNT, {"interval": interval}, prepare=True)
    return PipelinedQuery(cursor, _first_value)


async def count_workers(connection: Connection) -> PipelinedQuery[int]:
    """Count the workers that are registered with the queue."""
    cursor = await connection.execute(_WORKERS, prepare=True)
    return PipelinedQuery(cursor, _first_value)


async def select_idle(connection: Connection, before: datetime) -> list[TrackedBatch]:
    """Select open batches without an event since `before` and without work under way."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(_IDLE, (before,), prepare=True)
        return [batch_from_row(row) for row in await cursor.fetchall()]


async def select_lost(connection: Connection) -> list[TrackedUpload]:
    """Select uploads that a job should carry to a worker, now or later, and none does."""
    cursor = await connection.execute(_LOST, prepare=True)
    return _uploads(await cursor.fetchall())


async def prune_stalled_workers(connection: Connection, silence: float) -> None:
    """Delete workers without a heartbeat for so many seconds, and their jobs."""
    about = {"silence": silence, "task": TASK}
    await connection.execute(_PRUNE_JOBS, about, prepare=True)
    await connection.execute(_PRUNE_WORKERS, about, prepare=True)


async def start_batch_retries(connection: Connection, batches: Iterable[UUID]) -> None:
    """Retry all failed uploads of these batches, also if a retry of them is under way."""
    if wanted := list(batches):
        await connection.execute(_START_RETRY, (wanted, _NIL), prepare=True)


async def has_batch_retries(connection: Connection) -> PipelinedQuery[bool]:
    """Select whether any batch has failed uploads left to retry."""
    return PipelinedQuery(await connection.execute(_BATCH_RETRIES, prepare=True), bool)


async def next_failed_uploads(connection: Connection) -> dict[UUID, list[TrackedUpload]]:
    """Return the next failed uploads of each retried batch in the order of ids, and move on.

    Going by the ids, an upload is met once for each request: one that fails again stays failed.
    The retry of a batch ends with the first round that returns fewer than its share.
    """
    await connection.execute(_DROP_RETRIES, prepare=True)
    cursor = await connection.execute(_BATCH_RETRIES, prepare=True)
    retries = await cursor.fetchall()
    found = {}
    for batch, after in retries:
        share = MAX_ROUND_UPLOADS // len(retries)
        cursor = await connection.execute(_FAILED, (batch, after, share), prepare=True)
        uploads = found[batch] = _uploads(await cursor.fetchall())
        if len(uploads) < share:
            await connection.execute(_END_RETRY, (batch,), prepare=True)
        else:
            await connection.execute(_SAVE_RETRY, (uploads[-1].upload.id, batch), prepare=True)
    return found


def _uploads(rows: Sequence[Sequence[Any]]) -> list[TrackedUpload]:
    return [upload_from_row(row) for row in rows]


def _first_value(rows: Sequence[Sequence[Any]]) -> Any:
    return rows[0][0] if rows else None
