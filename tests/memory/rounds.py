"""The port `Rounds` in memory: the selections of `infrastructure.jobs.selection`, without SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from application.append import Append, AppendResult
from application.errors import ApplicationError
from application.orchestrator import RoundConsequences, UploadToCancel
from application.ports.jobs import RunnableUpload
from application.ports.orchestration import BatchSelection, Round, RoundSelection
from application.tracked_batches import (
    BatchCounts,
    TrackedBatch,
    TrackedUpload,
    TrackingChanges,
)
from domain.batch.state import Outcome
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState
from infrastructure.database_errors import LeadershipLost
from infrastructure.event_store.event_log import Aggregate, apply_event
from infrastructure.jobs.queue import task_arguments
from infrastructure.jobs.selection import (
    MAX_RETRIED_BATCHES,
    MAX_ROUND_BATCHES,
    MAX_ROUND_UPLOADS,
)
from infrastructure.jobs.tables import (
    batch_from_row,
    batch_row,
    upload_from_row,
    upload_row,
)
from infrastructure.postgres.tracked_positions import ORCHESTRATOR_POSITION
from infrastructure.settings import Settings
from tests.memory.database import Client, JobRow, MemoryDatabase, SessionClient
from tests.memory.event_log import StagedAppends, decoded

TRACKING_NAME = ORCHESTRATOR_POSITION.name
_NIL = UUID(int=0)

KINDS: Mapping[str, str] = {
    "registered": "incoming",
    "transferring": "incoming",
    "received": "received",
    "queued": "flight",
    "processing": "flight",
    "retry_scheduled": "retry",
    "failed": "failed",
}
_UNFINISHED = frozenset({"incoming", "received", "flight", "retry"})
_LIVE = frozenset({"open", "sealed"})

Row = dict[str, Any]


class MemoryRounds:
    """Rounds in the session of the leader. Every method raises psycopg.OperationalError."""

    def __init__(self, client: SessionClient, settings: Settings) -> None:
        self._client = client
        self._settings = settings

    async def load_position(self) -> int:
        positions = self._client.database.positions
        return await self._client.call(
            "load_position", lambda: positions.setdefault(TRACKING_NAME, 0)
        )

    @asynccontextmanager
    async def begin(self, position: int) -> AsyncIterator[Round]:
        client = self._client
        database, session = client.database, client.session
        await client.request("begin")
        locks = [database.lock(f"position of {TRACKING_NAME}"), database.lock("log")]
        await locks[0].acquire(session)
        try:
            saved = database.positions.get(TRACKING_NAME)
            if saved != position:
                raise LeadershipLost(f"the orchestrator is at {saved}, not at {position}")
            round = _MemoryRound(client, self._settings)
            yield round
            await client.request("commit")
            round.commit()
        finally:
            for lock in locks:
                lock.release(session)
        await client.response("commit")


class _MemoryRound:
    """Works on copies of the tables, which `commit` puts in their place."""

    def __init__(self, client: SessionClient, settings: Settings) -> None:
        self._client = client
        self._database = client.database
        self._settings = settings
        self._members = dict(self._database.members)
        self._batches = dict(self._database.batches)
        self._retries = dict(self._database.retries)
        self._position = 0
        self._appends = StagedAppends(self._database)
        self._jobs: list[JobRow] = []
        self._pruned_jobs: set[int] = set()
        self._pruned_workers: set[int] = set()

    def commit(self) -> None:
        database = self._database
        database.members, database.batches = self._members, self._batches
        database.retries = self._retries
        database.positions[TRACKING_NAME] = self._position
        for id in self._pruned_jobs:
            database.jobs.pop(id, None)
        delete_workers(database, self._pruned_workers)
        database.jobs |= {job.id: job for job in self._jobs}
        self._appends.commit()

    async def load(
        self, uploads: Iterable[UUID], batches: Iterable[UUID]
    ) -> tuple[Mapping[UUID, TrackedUpload], Mapping[UUID, TrackedBatch]]:
        wanted = sorted(uploads)
        rows = [self._members[id] for id in wanted if id in self._members]
        theirs = {*batches, *(row["batch"] for row in rows)}
        found = {row["upload"]: tracked_upload(row) for row in rows}
        known = {id: batch_from_row(self._batches[id]) for id in theirs if id in self._batches}
        return await self._client.call("load", lambda: (found, known))

    async def save_and_select(
        self, changes: TrackingChanges, *, through: int, at: datetime
    ) -> RoundSelection:
        self._save(changes.batches.values(), changes.uploads.values())
        self._retries |= dict.fromkeys(changes.batch_retries, _NIL)
        self._position = through
        selected = RoundSelection(
            to_cancel=self._to_cancel(),
            ready=self._ready(),
            to_count=self._to_count(at),
            has_batch_retries=bool(self._retries),
            workers=len(self._database.workers),
        )
        return await self._client.call("save_and_select", lambda: selected)

    async def next_failed_uploads(self) -> Mapping[UUID, Sequence[TrackedUpload]]:
        self._retries = {
            id: after
            for id, after in self._retries.items()
            if id not in self._batches or self._batches[id]["state"] in _LIVE
        }
        retries = sorted(self._retries.items())[:MAX_RETRIED_BATCHES]
        found = {}
        for batch, after in retries:
            share = MAX_ROUND_UPLOADS // len(retries)
            failed = [row for row in self._of(batch, {"failed"}) if row["upload"] > after][:share]
            found[batch] = [tracked_upload(row) for row in failed]
            if len(failed) < share:
                del self._retries[batch]
            else:
                self._retries[batch] = failed[-1]["upload"]
        return await self._client.call("next_failed_uploads", lambda: found)

    async def find_lost(self) -> Sequence[TrackedUpload]:
        database = self._database
        dead = database.now() - timedelta(seconds=self._settings.worker_dead_after)
        alive = {id for id, seen in database.workers.items() if seen > dead}
        self._pruned_jobs |= {
            job.id
            for job in database.jobs.values()
            if job.status == "doing" and job.worker not in alive
        }
        self._pruned_workers |= {id for id, seen in database.workers.items() if seen < dead}
        carried = {
            id
            for id, job in database.jobs.items()
            if job.status in ("todo", "doing") and id not in self._pruned_jobs
        }
        lost = [
            tracked_upload(row)
            for row in self._sorted_members()
            if KINDS.get(row["state"]) in ("flight", "retry")
            and row["job"] not in carried
            and (batch := self._batches[row["batch"]])["state"] in _LIVE
            and (row["state"] == "processing" or not batch["paused"])
        ]
        return await self._client.call("find_lost", lambda: lost[:MAX_ROUND_UPLOADS])

    async def find_idle(self, at: datetime) -> Sequence[TrackedBatch]:
        before = at - timedelta(seconds=self._settings.batch_expiry)
        idle = [
            batch_from_row(row)
            for id, row in sorted(self._batches.items())
            if row["state"] == "open"
            and not row["paused"]
            and row["active_at"] < before
            and not self._of(id, {"received", "flight", "retry"})
        ]
        return await self._client.call("find_idle", lambda: idle[:MAX_ROUND_BATCHES])

    async def count_uploads(self, batches: Sequence[UUID]) -> Mapping[UUID, BatchCounts]:
        counts = {}
        for id in batches:
            rows = [row for row in self._members.values() if row["batch"] == id]
            sized = [row for row in rows if row["state"] != "rejected"]
            counts[id] = BatchCounts(
                dict(Counter(UploadState(row["state"]) for row in rows)),
                sum(row["received"] for row in sized),
                sum(row["received"] if row["size"] is None else row["size"] for row in sized),
            )
        return await self._client.call("count_uploads", lambda: counts)

    async def append(self, appends: Sequence[Append]) -> Sequence[AppendResult | ApplicationError]:
        await self._client.request("append_group")
        await self._database.lock("log").acquire(self._client.session)
        results = self._appends.add(appends)
        await self._client.response("append_group")
        return results

    async def save(self, consequences: RoundConsequences) -> datetime | None:
        await self._client.request("save")
        jobs: dict[UUID, int] = {}
        for job in consequences.jobs:
            row = JobRow(
                id=next(self._database.job_ids), args=task_arguments(job), scheduled_at=job.at
            )
            self._jobs.append(row)
            jobs |= dict.fromkeys(job.uploads, row.id)
        self._save(consequences.batches, consequences.uploads_with_jobs(jobs))
        for id in consequences.dirty:
            if id in self._batches:
                self._batches[id] = {**self._batches[id], "dirty": True}
        due = min((self._due(row) for row in self._batches.values() if row["dirty"]), default=None)
        await self._client.response("save")
        return due

    def _save(self, batches: Iterable[TrackedBatch], uploads: Iterable[TrackedUpload]) -> None:
        self._batches |= {tracked.batch.id: batch_row(tracked) for tracked in batches}
        self._members |= {tracked.upload.id: upload_row(tracked) for tracked in uploads}

    def _sorted_members(self) -> list[Row]:
        return [row for _, row in sorted(self._members.items())]

    def _of(self, batch: UUID, kinds: Iterable[str]) -> list[Row]:
        return [
            row
            for row in self._sorted_members()
            if row["batch"] == batch and KINDS.get(row["state"]) in kinds
        ]

    def _due(self, row: Row) -> datetime:
        """Return when the next count of the batch is due; a large one is counted less often."""
        interval = self._settings.batch_progress_interval * max(1.0, row["uploads"] / 10000)
        last: datetime = row["progressed_at"] or row["started_at"]
        return last + timedelta(seconds=interval)

    def _to_count(self, at: datetime) -> list[BatchSelection]:
        selected = []
        for id, row in sorted(self._batches.items()):
            is_due = self._due(row) <= at
            unfinished = bool(self._of(id, _UNFINISHED))
            retrying = row["state"] in _LIVE and id in self._retries
            if row["dirty"] and (
                is_due
                or (row["state"] in ("sealed", "cancelling") and not unfinished)
                or (row["state"] == "completed" and unfinished)
            ):
                selected.append(BatchSelection(batch_from_row(row), is_due, retrying))
        return selected[:MAX_ROUND_BATCHES]

    def _to_cancel(self) -> list[UploadToCancel]:
        cancelling = [row for _, row in sorted(self._batches.items())]
        cancelling = [row for row in cancelling if row["state"] == "cancelling"][:MAX_ROUND_UPLOADS]
        chosen = []
        for batch in cancelling:
            share = max(1, MAX_ROUND_UPLOADS // len(cancelling))
            id = batch["batch"]
            first = self._of(id, {"flight", "retry"}) + self._of(id, {"incoming", "received"})
            ending = Outcome(batch["ending"]) if batch["ending"] else None
            chosen += [
                UploadToCancel(tracked_upload(row), ending, batch["reason"])
                for row in first[:share]
            ]
        return chosen

    def _ready(self) -> list[TrackedUpload]:
        """Return the next uploads: in turn among owners, then by priority, then batches."""
        per_batch = self._settings.in_flight_per_batch
        per_owner = self._settings.in_flight_per_owner
        by_owner: dict[str, list[tuple[int, int, UUID, Row]]] = {}
        for id, batch in self._batches.items():
            if batch["state"] not in _LIVE or batch["paused"]:
                continue
            room = per_batch - len(self._of(id, {"flight"}))
            waiting = self._of(id, {"received"})[: max(room, 0) + 1]
            if len(waiting) > room and room < max(1, per_batch // 4):
                continue
            by_owner.setdefault(batch["owner"], []).extend(
                (-batch["priority"], turn, id, row) for turn, row in enumerate(waiting[:room], 1)
            )
        placed: list[tuple[int, str, Row]] = []
        for owner, ready in by_owner.items():
            flying = [
                row
                for row in self._members.values()
                if row["owner"] == owner and KINDS.get(row["state"]) == "flight"
            ]
            room = per_owner - len(flying)
            ready.sort(key=lambda one: one[:3])
            if len(ready) <= room or room >= max(1, per_owner // 4):
                ranked = enumerate(ready[: max(room, 0)], 1)
                placed += [(place, owner, one[3]) for place, one in ranked]
        placed.sort(key=lambda one: one[:2])
        return [tracked_upload(row) for _, _, row in placed[:MAX_ROUND_UPLOADS]]


def tracked_upload(row: Row) -> TrackedUpload:
    return upload_from_row(list(row.values()))


def delete_workers(database: MemoryDatabase, workers: Iterable[int]) -> None:
    """Delete workers; their jobs have none from now on."""
    for id in sorted(workers):
        database.workers.pop(id, None)
        for job in database.jobs.values():
            if job.worker == id:
                job.worker = None


class MemoryRunnableUploads:
    """The port `RunnableUploads` in memory."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def load(self, uploads: Sequence[UUID]) -> Sequence[RunnableUpload]:
        return await self._client.call("runnable", lambda: self._load(uploads))

    def _load(self, uploads: Sequence[UUID]) -> Sequence[RunnableUpload]:
        database, found = self._client.database, []
        for id in uploads:
            row = database.members.get(id)
            batch = database.batches.get(row["batch"]) if row else None
            if row is None or batch is None or batch["paused"] or batch["state"] not in _LIVE:
                continue
            upload: Aggregate | None = None
            for stored in database.streams[id]:
                upload = apply_event(id, upload, decoded(stored).event)
            if not isinstance(upload, Upload):
                continue
            is_due = row["state"] == "retry_scheduled" and row["retry_at"] <= database.now()
            found.append(
                RunnableUpload(upload, retry_due=is_due and row["version"] == upload.version)
            )
        return found
