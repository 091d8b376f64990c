"""Uploads and batches as the orchestrator tracks them, and how recorded events change them.

Pure: events and known values in, changed values out. `infrastructure.jobs.tables` stores them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Self, TypeAlias
from uuid import UUID

import msgspec
from msgspec.structs import replace

from application.append import RecordedEvent
from domain.batch.aggregate import Batch
from domain.batch.events import (
    BATCH_EVENTS,
    BatchCancelled,
    BatchEvent,
    BatchExpired,
    BatchResumed,
    BatchRetryRequested,
)
from domain.batch.state import Counts
from domain.event import UnknownEvent
from domain.ids import is_partial_upload
from domain.upload.aggregate import Upload
from domain.upload.events import (
    UPLOAD_EVENTS,
    AttemptFailed,
    UploadEvent,
    UploadRegistered,
    UploadRejected,
)


class MissedEvent(Exception):
    """An event of a stream is missing between its row and the next event that was read."""


class TrackedUpload(msgspec.Struct, frozen=True, kw_only=True):
    """Upload with its retry time and its job.

    Of a stored `upload` only the fields are loaded that decide what may happen next, so not its
    path. `retry_at` is when its next attempt is due; `job` is the id of the job that carries it
    to a worker.
    """

    upload: Upload
    retry_at: datetime | None = None
    job: int | None = None

    @classmethod
    def begin(cls, id: UUID, event: UploadEvent) -> Self:
        return cls.after(event, Upload.begin(id, event))

    def evolve(self, event: UploadEvent) -> Self:
        return self.after(event, self.upload.evolve(event), self.job)

    @classmethod
    def after(cls, event: object, upload: Upload, job: int | None = None) -> Self:
        """Return the row of an upload whose last event is this one.

        Once an upload has ended, neither its job nor its lost workers matter any more.
        """
        if upload.state.ended:
            upload, job = replace(upload, losses=0), None
        retry_at = event.retry_at if isinstance(event, AttemptFailed) else None
        return cls(upload=upload, retry_at=retry_at, job=job)


class TrackedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Batch with what follows from its uploads; `dirty` until its counts have been recorded.

    Of a stored `batch` only the fields are loaded that decide what may happen next. `reason` is
    why it was cancelled or expired; `active_at` is the time of the last event of the batch or of
    one of its uploads.
    """

    batch: Batch
    active_at: datetime
    reason: str = ""
    dirty: bool = True

    @classmethod
    def begin(cls, id: UUID, event: BatchEvent) -> Self:
        return cls(batch=Batch.begin(id, event), active_at=event.at)

    def evolve(self, event: BatchEvent) -> Self:
        match event:
            case BatchCancelled(reason=reason):
                pass
            case BatchExpired():
                reason = "the batch expired"
            case _:
                reason = self.reason
        batch = self.batch.evolve(event)
        return replace(self, batch=batch, active_at=event.at, reason=reason, dirty=True)

    def mark_dirty(self, at: datetime) -> Self:
        """Return the batch after an event of one of its uploads."""
        return replace(self, dirty=True, active_at=at)

    def mark_clean(self) -> Self:
        """Return the batch with its counts recorded."""
        return replace(self, dirty=False) if self.dirty else self


class BatchCounts(msgspec.Struct, frozen=True):
    """Uploads of a batch by state, and their bytes; rejected files count no bytes."""

    by_state: Counts
    bytes_received: int = 0
    bytes_total: int = 0


TrackedUploads: TypeAlias = Mapping[UUID, TrackedUpload]
TrackedBatches: TypeAlias = Mapping[UUID, TrackedBatch]


class TrackingChanges(msgspec.Struct):
    """Consequences of recorded events: changed rows, and what they ask the orchestrator to do.

    `uploads` and `batches` hold only what changed. `retries` are uploads whose next attempt has
    a time; the failed uploads of the batches in `batch_retries` are to be processed again;
    `resumed` is whether a paused batch was resumed.
    """

    uploads: dict[UUID, TrackedUpload] = msgspec.field(default_factory=dict)
    batches: dict[UUID, TrackedBatch] = msgspec.field(default_factory=dict)
    retries: set[UUID] = msgspec.field(default_factory=set)
    batch_retries: set[UUID] = msgspec.field(default_factory=set)
    resumed: bool = False


def streams_of(events: Iterable[RecordedEvent]) -> tuple[set[UUID], set[UUID]]:
    """Return the uploads and the batches whose rows `apply_events` needs."""
    uploads: set[UUID] = set()
    batches: set[UUID] = set()
    for recorded in events:
        if is_partial_upload(recorded.stream):
            continue
        if isinstance(recorded.event, UPLOAD_EVENTS):
            uploads.add(recorded.stream)
            if isinstance(recorded.event, UploadRegistered | UploadRejected):
                batches.add(recorded.event.batch)
        elif isinstance(recorded.event, BATCH_EVENTS):
            batches.add(recorded.stream)
        elif isinstance(recorded.event, UnknownEvent):
            uploads.add(recorded.stream)
            batches.add(recorded.stream)
    return uploads, batches


def apply_events(
    events: Iterable[RecordedEvent], uploads: TrackedUploads, batches: TrackedBatches
) -> TrackingChanges:
    """Apply events to the known rows of their streams.

    The orchestrator reads its own events again; events that a row already includes change
    nothing. Partial uploads of a concatenation are not tracked: only the final upload is. An
    event of an unknown type, which a later version of Uptrail has recorded, changes the version of
    its row and nothing else. Raises MissedEvent.
    """
    changes = TrackingChanges()
    for recorded in events:
        if is_partial_upload(recorded.stream):
            continue
        if isinstance(recorded.event, UPLOAD_EVENTS):
            _apply_to_upload(changes, recorded, recorded.event, uploads, batches)
        elif isinstance(recorded.event, BATCH_EVENTS):
            _apply_to_batch(changes, recorded, recorded.event, batches)
        elif isinstance(recorded.event, UnknownEvent):
            _skip_unknown(changes, recorded, uploads, batches)
    return changes


def _apply_to_upload(
    changes: TrackingChanges,
    recorded: RecordedEvent,
    event: UploadEvent,
    uploads: TrackedUploads,
    batches: TrackedBatches,
) -> None:
    id = recorded.stream
    known = changes.uploads.get(id) or uploads.get(id)
    if not _is_new(recorded, known.upload.version if known else 0):
        return
    tracked = known.evolve(event) if known else TrackedUpload.begin(id, event)
    changes.uploads[id] = tracked
    batch_id = tracked.upload.batch
    batch = changes.batches.get(batch_id) or batches.get(batch_id)
    if batch is None:
        raise MissedEvent(f"upload {id} belongs to the unknown batch {batch_id}")
    changes.batches[batch_id] = batch.mark_dirty(event.at)
    changes.retries.discard(id)
    if tracked.retry_at is not None:
        changes.retries.add(id)


def _apply_to_batch(
    changes: TrackingChanges, recorded: RecordedEvent, event: BatchEvent, batches: TrackedBatches
) -> None:
    id = recorded.stream
    known = changes.batches.get(id) or batches.get(id)
    if not _is_new(recorded, known.batch.version if known else 0):
        return
    changes.batches[id] = known.evolve(event) if known else TrackedBatch.begin(id, event)
    changes.resumed |= isinstance(event, BatchResumed)
    if isinstance(event, BatchRetryRequested):
        changes.batch_retries.add(id)


def _skip_unknown(
    changes: TrackingChanges,
    recorded: RecordedEvent,
    uploads: TrackedUploads,
    batches: TrackedBatches,
) -> None:
    id, version = recorded.stream, recorded.version
    if upload := changes.uploads.get(id) or uploads.get(id):
        if _is_new(recorded, upload.upload.version):
            changed = replace(upload.upload, version=version)
            changes.uploads[id] = replace(upload, upload=changed)
    elif (batch := changes.batches.get(id) or batches.get(id)) and _is_new(
        recorded, batch.batch.version
    ):
        changes.batches[id] = replace(batch, batch=replace(batch.batch, version=version))


def _is_new(recorded: RecordedEvent, known: int) -> bool:
    if recorded.version > known + 1:
        raise MissedEvent(
            f"stream {recorded.stream} has version {recorded.version} after {known}, "
            f"at position {recorded.position}"
        )
    return recorded.version > known
