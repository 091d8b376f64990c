"""The orchestrator's rows: members and batches, read and written many at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from application.orchestrator.following import Batches, Members
from application.orchestrator.members import Followed, Member, Tally
from domain.batch.events import BatchProgressed
from domain.batch.state import BatchState, Outcome, percent_of
from domain.upload.state import UploadState
from infrastructure.event_store.arrays import uuids
from infrastructure.postgres.pool import Connection

MEMBER = "m.upload, m.batch, m.owner, m.state, m.version, m.size, m.received, m.attempt, m.worker, "
MEMBER += "m.retry_at, m.job, m.losses"

_MEMBERS = f"SELECT {MEMBER} FROM orchestration.members m WHERE m.upload = ANY(%s)"  # noqa: S608

# The batches named, and those of the uploads.
_BATCHES = """
SELECT * FROM orchestration.batches WHERE batch IN (
  SELECT unnest(%s::uuid[])
  UNION SELECT m.batch FROM orchestration.members m WHERE m.upload = ANY(%s))"""

_SAVE_MEMBERS = """
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

_TALLIES = """
SELECT batch, state, count(*),
    coalesce(sum(received) FILTER (WHERE state <> 'rejected'), 0),
    coalesce(sum(coalesce(size, received)) FILTER (WHERE state <> 'rejected'), 0)
FROM orchestration.members WHERE batch = ANY(%s) GROUP BY batch, state"""


async def load(
    connection: Connection, uploads: Iterable[UUID], batches: Iterable[UUID]
) -> tuple[Members, Batches]:
    """Those of these uploads and batches that are known, and the batches of the uploads."""
    ids = uuids(uploads)
    async with connection.pipeline():
        found = connection.cursor(binary=True)
        await found.execute(_MEMBERS, (ids,), prepare=True)
        theirs = connection.cursor(row_factory=dict_row)
        await theirs.execute(_BATCHES, (uuids(batches), ids), prepare=True)
    members = {row[0]: member_of(row) for row in await found.fetchall()}
    return members, {row["batch"]: followed_of(row) for row in await theirs.fetchall()}


def member_of(row: Sequence[Any]) -> Member:
    """From the columns `MEMBER`."""
    return Member(
        upload=row[0],
        batch=row[1],
        owner=row[2],
        state=UploadState(row[3]),
        version=row[4],
        size=row[5],
        received=row[6],
        attempt=row[7],
        worker=row[8],
        retry_at=row[9],
        job=row[10],
        losses=row[11],
    )


async def save_members(connection: Connection, members: Iterable[Member]) -> None:
    if rows := [_columns_of(member) for member in members]:
        columns = [list(column) for column in zip(*rows, strict=True)]
        await connection.execute(_SAVE_MEMBERS, columns, prepare=True)


def _columns_of(member: Member) -> tuple[object, ...]:
    """In the order of the table."""
    return (
        member.upload,
        member.batch,
        member.owner,
        member.state.value,
        member.version,
        member.size,
        member.received,
        member.attempt,
        member.worker,
        member.retry_at,
        member.job,
        member.losses,
    )


def followed_of(row: dict[str, Any]) -> Followed:
    """From the columns of `orchestration.batches`."""
    return Followed(
        batch=row["batch"],
        owner=row["owner"],
        version=row["version"],
        started_at=row["started_at"],
        active_at=row["active_at"],
        priority=row["priority"],
        state=BatchState(row["state"]),
        paused=row["paused"],
        ending=Outcome(row["ending"]) if row["ending"] else None,
        reason=row["reason"],
        progress=_progress_of(row),
        dirty=row["dirty"],
        failure_threshold=row["failure_threshold"],
        pardoned=row["pardoned"],
    )


def _progress_of(row: dict[str, Any]) -> BatchProgressed | None:
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


async def save_batches(connection: Connection, batches: Iterable[Followed]) -> None:
    """One statement each, which is little to somebody who has opened a pipeline."""
    for batch in batches:
        await connection.execute(_SAVE_BATCH, _row_of(batch), prepare=True)


def _row_of(batch: Followed) -> dict[str, Any]:
    progress = batch.progress
    return {
        "batch": batch.batch,
        "owner": batch.owner,
        "state": batch.state.value,
        "paused": batch.paused,
        "ending": batch.ending.value if batch.ending else None,
        "reason": batch.reason.replace("\0", "\ufffd"),  # text cannot hold NUL
        "priority": batch.priority,
        "version": batch.version,
        "started_at": batch.started_at,
        "counts": Jsonb(progress.counts) if progress else None,
        "uploads": sum(progress.counts.values()) if progress else 0,
        "bytes_received": progress.bytes_received if progress else 0,
        "bytes_total": progress.bytes_total if progress else 0,
        "progressed_at": progress.at if progress else None,
        "dirty": batch.dirty,
        "active_at": batch.active_at,
        "failure_threshold": batch.failure_threshold,
        "pardoned": batch.pardoned,
        "arrived_at": progress.arrived_at if progress else None,
    }


async def tally(connection: Connection, batches: Iterable[UUID]) -> dict[UUID, Tally]:
    """The uploads of each batch, counted from its members."""
    counts: dict[UUID, dict[UploadState, int]] = {batch: {} for batch in batches}
    tallies = {batch: Tally(counts[batch]) for batch in counts}
    cursor = await connection.execute(_TALLIES, (list(tallies),), prepare=True)
    for batch, state, count, received, total in await cursor.fetchall():
        known = tallies[batch]
        counts[batch][UploadState(state)] = count
        tallies[batch] = Tally(
            counts[batch], known.bytes_received + int(received), known.bytes_total + int(total)
        )
    return tallies
