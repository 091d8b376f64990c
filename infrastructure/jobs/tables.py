"""Tables of the orchestrator: tracked uploads and batches, and its position in the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from application.tracked_batches import BatchCounts, TrackedBatch, TrackedUpload
from domain.batch.aggregate import Batch
from domain.batch.events import BatchProgressed
from domain.batch.state import BatchState, Outcome, percent_of
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState
from infrastructure.database_errors import LeadershipLost
from infrastructure.event_store.libpq import uuids
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.tracked_positions import ORCHESTRATOR_POSITION

_UPLOAD_COLUMNS = (
    "upload",
    "batch",
    "owner",
    "state",
    "version",
    "size",
    "received",
    "attempt",
    "worker",
    "retry_at",
    "job",
    "losses",
)
UPLOAD_COLUMNS = ", ".join(f"m.{name}" for name in _UPLOAD_COLUMNS)  # of `members m`

_UPLOADS = f"SELECT {UPLOAD_COLUMNS} FROM orchestration.members m WHERE m.upload = ANY(%s)"  # noqa: S608

# The batches named, and those of the uploads.
_BATCHES = """
SELECT * FROM orchestration.batches WHERE batch IN (
  SELECT unnest(%s::uuid[])
  UNION SELECT m.batch FROM orchestration.members m WHERE m.upload = ANY(%s))"""

_SAVE_UPLOADS = """
INSERT INTO orchestration.members
SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::bigint[], %s::bigint[],
    %s::bigint[], %s::integer[], %s::text[], %s::timestamptz[], %s::bigint[], %s::integer[])
ON CONFLICT (upload) DO UPDATE SET (state, version, size, received, attempt, worker, retry_at, job,
    losses)
  = (EXCLUDED.state, EXCLUDED.version, EXCLUDED.size, EXCLUDED.received, EXCLUDED.attempt,
     EXCLUDED.worker, EXCLUDED.retry_at, EXCLUDED.job, EXCLUDED.losses)"""

_SAVE_BATCH = """
INSERT INTO orchestration.batches
VALUES (%(batch)s, %(owner)s, %(state)s, %(paused)s, %(ending)s, %(reason)s, %(priority)s,
    %(version)s, %(started_at)s, %(counts)s, %(uploads)s, %(bytes_received)s, %(bytes_total)s,
    %(progressed_at)s, %(dirty)s, %(active_at)s, %(failure_threshold)s, %(pardoned)s,
    %(arrived_at)s)
ON CONFLICT (batch) DO UPDATE SET (state, paused, ending, reason, priority, version, counts,
    uploads, bytes_received, bytes_total, progressed_at, dirty, active_at, pardoned, arrived_at)
  = (EXCLUDED.state, EXCLUDED.paused, EXCLUDED.ending, EXCLUDED.reason, EXCLUDED.priority,
     EXCLUDED.version, EXCLUDED.counts, EXCLUDED.uploads, EXCLUDED.bytes_received,
     EXCLUDED.bytes_total, EXCLUDED.progressed_at, EXCLUDED.dirty, EXCLUDED.active_at,
     EXCLUDED.pardoned, EXCLUDED.arrived_at)"""

_MARK_DIRTY = "UPDATE orchestration.batches SET dirty = true WHERE batch = ANY(%s) AND NOT dirty"

_COUNTS = """
SELECT batch, state, count(*),
    coalesce(sum(received) FILTER (WHERE state <> 'rejected'), 0),
    coalesce(sum(coalesce(size, received)) FILTER (WHERE state <> 'rejected'), 0)
FROM orchestration.members WHERE batch = ANY(%s) GROUP BY batch, state"""


async def load_position(connection: Connection) -> int:
    """Return the position that the last leader saved, 0 if there was none."""
    await ORCHESTRATOR_POSITION.create(connection)
    return await ORCHESTRATOR_POSITION.load(connection)


async def require_position(connection: Connection, position: int) -> None:
    """Lock the saved position for this transaction. Raises LeadershipLost if it has moved."""
    saved = await ORCHESTRATOR_POSITION.lock(connection)
    if saved != position:
        raise LeadershipLost(f"the orchestrator is at {saved}, not at {position}")


async def load(
    connection: Connection, uploads: Iterable[UUID], batches: Iterable[UUID]
) -> tuple[dict[UUID, TrackedUpload], dict[UUID, TrackedBatch]]:
    """Return the known ones of these uploads and batches, and the batches of the uploads."""
    ids = uuids(uploads)
    async with connection.pipeline():
        found = connection.cursor(binary=True)
        await found.execute(_UPLOADS, (ids,), prepare=True)
        theirs = connection.cursor(row_factory=dict_row)
        await theirs.execute(_BATCHES, (uuids(batches), ids), prepare=True)
    tracked = {row[0]: upload_from_row(row) for row in await found.fetchall()}
    return tracked, {row["batch"]: batch_from_row(row) for row in await theirs.fetchall()}


async def save_uploads(connection: Connection, uploads: Iterable[TrackedUpload]) -> None:
    if rows := [tuple(upload_row(tracked).values()) for tracked in uploads]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        await connection.execute(_SAVE_UPLOADS, columns, prepare=True)


async def save_batches(connection: Connection, batches: Iterable[TrackedBatch]) -> None:
    """Save each batch in a statement of its own, which takes little time in a pipeline."""
    for tracked in batches:
        row = batch_row(tracked)
        values = row | {"counts": None if row["counts"] is None else Jsonb(row["counts"])}
        await connection.execute(_SAVE_BATCH, values, prepare=True)


async def count_uploads(connection: Connection, batches: Iterable[UUID]) -> dict[UUID, BatchCounts]:
    """Count the uploads of each batch by state, and their bytes."""
    by_state: dict[UUID, dict[UploadState, int]] = {batch: {} for batch in batches}
    if not by_state:
        return {}
    counted = {batch: BatchCounts(by_state[batch]) for batch in by_state}
    cursor = await connection.execute(_COUNTS, (list(counted),), prepare=True)
    for batch, state, count, received, total in await cursor.fetchall():
        known = counted[batch]
        by_state[batch][UploadState(state)] = count
        counted[batch] = BatchCounts(
            by_state[batch], known.bytes_received + int(received), known.bytes_total + int(total)
        )
    return counted


async def mark_dirty(connection: Connection, batches: Iterable[UUID]) -> None:
    """Mark batches for another count: uploads of theirs have changed."""
    if changed := list(batches):
        await connection.execute(_MARK_DIRTY, (changed,), prepare=True)


def upload_from_row(row: Sequence[Any]) -> TrackedUpload:
    """Return the upload of a row of `UPLOAD_COLUMNS`."""
    id, batch, owner, state, version, size, received, attempt, worker, retry_at, job, losses = row
    upload = Upload(
        id=id,
        batch=batch,
        owner=owner,
        state=UploadState(state),
        version=version,
        size=size,
        received=received,
        attempt=attempt,
        worker=worker,
        losses=losses,
    )
    return TrackedUpload(upload=upload, retry_at=retry_at, job=job)


def upload_row(tracked: TrackedUpload) -> dict[str, Any]:
    """Return the columns of an upload by name, in the order of the table."""
    upload = tracked.upload
    values = (
        upload.id,
        upload.batch,
        upload.owner,
        upload.state.value,
        upload.version,
        upload.size,
        upload.received,
        upload.attempt,
        upload.worker,
        tracked.retry_at,
        tracked.job,
        upload.losses,
    )
    return dict(zip(_UPLOAD_COLUMNS, values, strict=True))


def batch_from_row(row: Mapping[str, Any]) -> TrackedBatch:
    """Return the batch of a row of `orchestration.batches`."""
    state = BatchState(row["state"])
    batch = Batch(
        id=row["batch"],
        version=row["version"],
        owner=row["owner"],
        started_at=row["started_at"],
        priority=row["priority"],
        state=state,
        sealed=state is not BatchState.OPEN,
        paused=row["paused"],
        pending_outcome=Outcome(row["ending"]) if row["ending"] else None,
        progress=_progress_from_row(row),
        failure_threshold=row["failure_threshold"],
        acknowledged_failures=row["pardoned"],
    )
    return TrackedBatch(
        batch=batch, active_at=row["active_at"], reason=row["reason"], dirty=row["dirty"]
    )


def _progress_from_row(row: Mapping[str, Any]) -> BatchProgressed | None:
    if row["progressed_at"] is None:
        return None
    counts = {UploadState(state): count for state, count in row["counts"].items()}
    received, total = row["bytes_received"], row["bytes_total"]
    return BatchProgressed(
        at=row["progressed_at"],
        by="",
        counts=counts,
        bytes_received=received,
        bytes_total=total,
        percent=percent_of(counts, received, total),
        through=0,
        arrived_at=row["arrived_at"],
    )


def batch_row(tracked: TrackedBatch) -> dict[str, Any]:
    """Return the columns of a batch by name; `counts` by upload state."""
    batch = tracked.batch
    progress = batch.progress
    return {
        "batch": batch.id,
        "owner": batch.owner,
        "state": batch.state.value,
        "paused": batch.paused,
        "ending": batch.pending_outcome.value if batch.pending_outcome else None,
        "reason": tracked.reason.replace("\0", "\ufffd"),  # text cannot hold NUL
        "priority": batch.priority,
        "version": batch.version,
        "started_at": batch.started_at,
        "counts": progress.counts if progress else None,
        "uploads": sum(progress.counts.values()) if progress else 0,
        "bytes_received": progress.bytes_received if progress else 0,
        "bytes_total": progress.bytes_total if progress else 0,
        "progressed_at": progress.at if progress else None,
        "dirty": tracked.dirty,
        "active_at": tracked.active_at,
        "failure_threshold": batch.failure_threshold,
        "pardoned": batch.acknowledged_failures,
        "arrived_at": progress.arrived_at if progress else None,
    }
