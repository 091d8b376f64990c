"""The batch aggregate: decisions return the events that follow from a command, or raise."""

from __future__ import annotations

from datetime import datetime
from typing import Self, assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchErased,
    BatchEvent,
    BatchExpired,
    BatchPaused,
    BatchPrioritized,
    BatchProgressed,
    BatchRenamed,
    BatchReopened,
    BatchResumed,
    BatchRetryRequested,
    BatchSealed,
    BatchStarted,
    UploadsAdded,
)
from domain.batch.state import (
    BatchState,
    Counts,
    Outcome,
    all_ended,
    arrived_count,
    exceeds_failure_threshold,
    failed_count,
    outcome_of,
    percent_of,
)
from domain.errors import FieldError, InvalidState, ValidationFailed
from domain.file import FileDeclaration, has_control_characters
from domain.ids import rejection_id_for, upload_id_for
from domain.retry import RetryPolicy
from domain.upload.events import UploadEvent, UploadRegistered, UploadRejected
from domain.upload.state import UploadState

MAX_LABEL = 200  # characters


def label_error(label: str) -> str | None:
    """Return why this is not a valid label of a batch, if it is not."""
    if len(label) > MAX_LABEL or has_control_characters(label):
        return f"must be at most {MAX_LABEL} printable characters"
    return None


class Batch(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="batch"):
    """Many uploads as one job.

    A batch does not list its uploads: each names its batch. `pending_outcome` is the outcome that a
    cancelled or expired batch will have. `acknowledged_failures` is the number of failed uploads
    when the batch was last resumed: those do not pause it again.
    """

    id: UUID
    version: int
    owner: str
    started_at: datetime
    label: str = ""
    pipeline: str = ""
    retry_policy: RetryPolicy = RetryPolicy()
    priority: int = 0
    failure_threshold: float | None = None
    fingerprint: str = ""
    state: BatchState = BatchState.OPEN
    sealed: bool = False
    paused: bool = False
    pending_outcome: Outcome | None = None
    outcome: Outcome | None = None
    progress: BatchProgressed | None = None
    acknowledged_failures: int = 0
    erased: bool = False

    # Decide: return the events that follow from a command, or raise.

    def register_upload(
        self, file: FileDeclaration, secret: bytes, *, at: datetime, by: str
    ) -> tuple[UUID, tuple[UploadEvent, ...]]:
        """Return the stream and the first event of a file that joins this batch.

        `secret` is that of the ids of the database.
        """
        self.require_open()
        registered = UploadRegistered(
            at=at,
            by=by,
            batch=self.id,
            owner=self.owner,
            path=file.path,
            size=file.size,
            media_type=file.media_type,
            checksum=file.checksum,
            metadata=file.metadata,
            pipeline=self.pipeline,
            retry_policy=self.retry_policy,
        )
        return upload_id_for(self.id, file.path, secret), (registered,)

    def reject_upload(
        self,
        file: FileDeclaration,
        code: str,
        message: str,
        secret: bytes,
        *,
        at: datetime,
        by: str,
    ) -> tuple[UUID, tuple[UploadEvent, ...]]:
        """Return the stream and the only event of a file that breaks a rule of the batch."""
        self.require_open()
        rejected = UploadRejected(
            at=at,
            by=by,
            batch=self.id,
            owner=self.owner,
            path=file.path,
            size=file.size,
            media_type=file.media_type,
            code=code,
            message=message,
        )
        return rejection_id_for(self.id, file.path, code, secret), (rejected,)

    def add_uploads(
        self, count: int, bytes: int, *, at: datetime, by: str
    ) -> tuple[BatchEvent, ...]:
        self.require_open()
        return (UploadsAdded(at=at, by=by, count=count, bytes=bytes),) if count else ()

    def seal(self, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        """Close the batch to new files; no event if it is sealed already."""
        if self.state is BatchState.SEALED:
            return ()
        self.require_open()
        return (BatchSealed(at=at, by=by),)

    def pause(self, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        self._require(BatchState.OPEN, BatchState.SEALED)
        return () if self.paused else (BatchPaused(at=at, by=by),)

    def resume(self, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        self._require(BatchState.OPEN, BatchState.SEALED)
        return (BatchResumed(at=at, by=by),) if self.paused else ()

    def prioritize(self, priority: int, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        self._require(BatchState.OPEN, BatchState.SEALED)
        if priority == self.priority:
            return ()
        return (BatchPrioritized(at=at, by=by, priority=priority),)

    def rename(self, label: str, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        """Change the label, in every state until the batch is erased. Raises ValidationFailed."""
        if self.erased:
            raise InvalidState("the batch is erased")
        if problem := label_error(label):
            raise ValidationFailed(FieldError("label", problem))
        return () if label == self.label else (BatchRenamed(at=at, by=by, label=label),)

    def request_retry(self, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        """Request that every failed upload is processed again; a completed batch is reopened."""
        self._require(BatchState.OPEN, BatchState.SEALED, BatchState.COMPLETED)
        requested = BatchRetryRequested(at=at, by=by)
        if self.state is not BatchState.COMPLETED:
            return (requested,)
        if self.pending_outcome is not None:
            raise InvalidState(
                f"the batch was {self.pending_outcome}: retry its failed uploads one by one"
            )
        if not (self.progress and self.progress.counts.get(UploadState.FAILED)):
            raise InvalidState("the batch is completed, and none of its uploads failed")
        return *self.reopen("retry of failed uploads", at=at, by=by), requested

    def pause_if_failing(self, counts: Counts, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        """Pause the batch if more uploads failed than its threshold allows."""
        threshold = self.failure_threshold
        if threshold is None or self.paused or self.pending_outcome is not None:
            return ()
        if not exceeds_failure_threshold(
            counts, threshold, acknowledged=self.acknowledged_failures, sealed=self.sealed
        ):
            return ()
        failed = failed_count(counts) - self.acknowledged_failures
        reason = f"{failed} uploads failed, more than {threshold:.0%} of those processed"
        return (BatchPaused(at=at, by=by, reason=reason),)

    def cancel(
        self, reason: str = "cancelled on request", *, at: datetime, by: str
    ) -> tuple[BatchEvent, ...]:
        if self.pending_outcome is Outcome.CANCELLED:
            return ()
        self._require(BatchState.OPEN, BatchState.SEALED)
        return (BatchCancelled(at=at, by=by, reason=reason),)

    def expire(self, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        self._require(BatchState.OPEN)
        return (BatchExpired(at=at, by=by),)

    def record_progress(
        self,
        counts: Counts,
        *,
        bytes_received: int,
        bytes_total: int,
        through: int,
        at: datetime,
        by: str,
    ) -> tuple[BatchEvent, ...]:
        """Record the counts; no event if they are those recorded last."""
        progressed = BatchProgressed(
            at=at,
            by=by,
            counts=dict(counts),
            bytes_received=bytes_received,
            bytes_total=bytes_total,
            percent=percent_of(
                counts, bytes_received, bytes_total, called_off=self.pending_outcome is not None
            ),
            through=through,
            arrived_at=self._arrived_at(counts, bytes_received, at),
        )
        return () if self._stands_at(progressed) else (progressed,)

    def complete(self, counts: Counts, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        """Record the outcome, once every upload of a sealed batch has ended."""
        self._require(BatchState.SEALED, BatchState.CANCELLING)
        if not all_ended(counts):
            raise InvalidState("uploads of the batch have not ended")
        duration = (at - self.started_at).total_seconds()
        outcome = outcome_of(counts, self.pending_outcome)
        return (
            BatchCompleted(at=at, by=by, outcome=outcome, counts=dict(counts), duration=duration),
        )

    def reopen(self, reason: str, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        self._require(BatchState.COMPLETED)
        return (BatchReopened(at=at, by=by, reason=reason),)

    def reopen_for_retry(self, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        """Reopen a completed batch, one of whose uploads is to be processed again."""
        if self.state is not BatchState.COMPLETED:
            return ()
        return self.reopen("an upload is to be processed again", at=at, by=by)

    def reopen_for_release(self, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        """Reopen a completed batch, one of whose uploads was released; a cancelled one stays."""
        if self.state is not BatchState.COMPLETED or self.pending_outcome is not None:
            return ()
        return self.reopen("an upload was released from quarantine", at=at, by=by)

    def require_open(self) -> None:
        """Raise InvalidState unless files may still be added."""
        self._require(BatchState.OPEN)

    def erase(self, *, at: datetime, by: str) -> tuple[BatchEvent, ...]:
        """Record that the personal fields are destroyed; no event if they are already."""
        if self.erased:
            return ()
        self._require(BatchState.COMPLETED)
        return (BatchErased(at=at, by=by),)

    # Evolve: take an event as fact.

    @classmethod
    def begin(cls, id: UUID, event: BatchEvent) -> Self:
        if not isinstance(event, BatchStarted):
            raise InvalidState("a batch begins by being started")
        return cls(
            id=id,
            version=1,
            owner=event.owner,
            started_at=event.at,
            label=event.label,
            pipeline=event.pipeline,
            retry_policy=event.retry_policy,
            priority=event.priority,
            failure_threshold=event.failure_threshold,
            fingerprint=event.fingerprint,
        )

    def evolve(self, event: BatchEvent) -> Self:
        version = self.version + 1
        match event:
            case UploadsAdded():
                return replace(self, version=version)
            case BatchSealed():
                return replace(self, version=version, sealed=True, state=BatchState.SEALED)
            case BatchProgressed():
                return replace(self, version=version, progress=event)
            case BatchPaused():
                return replace(self, version=version, paused=True)
            case BatchResumed():
                acknowledged_failures = failed_count(self.progress.counts) if self.progress else 0
                return replace(
                    self, version=version, paused=False, acknowledged_failures=acknowledged_failures
                )
            case BatchPrioritized(priority=priority):
                return replace(self, version=version, priority=priority)
            case BatchRenamed(label=label):
                return replace(self, version=version, label=label)
            case BatchRetryRequested():
                return replace(self, version=version)
            case BatchCancelled():
                return self._ending(Outcome.CANCELLED)
            case BatchExpired():
                return self._ending(Outcome.EXPIRED)
            case BatchReopened():
                return replace(
                    self,
                    version=version,
                    state=BatchState.SEALED,
                    pending_outcome=None,
                    outcome=None,
                )
            case BatchCompleted(outcome=outcome):
                return replace(self, version=version, state=BatchState.COMPLETED, outcome=outcome)
            case BatchErased():
                return replace(self, version=version, label="", fingerprint="", erased=True)
            case BatchStarted():
                raise InvalidState("a batch is started once")
            case _:
                assert_never(event)

    def _ending(self, outcome: Outcome) -> Self:
        return replace(
            self,
            version=self.version + 1,
            state=BatchState.CANCELLING,
            sealed=True,
            paused=False,
            pending_outcome=outcome,
        )

    def _arrived_at(self, counts: Counts, bytes_received: int, at: datetime) -> datetime | None:
        """Return when bytes or a whole file last arrived, if these counts are of `at`."""
        last = self.progress
        arrived = arrived_count(counts)
        if last is None:
            return at if arrived or bytes_received else None
        if arrived > arrived_count(last.counts) or bytes_received > last.bytes_received:
            return at
        if last.arrived_at is None and (arrived or bytes_received):
            return last.at  # counted by a version without this field
        return last.arrived_at

    def _stands_at(self, progressed: BatchProgressed) -> bool:
        last = self.progress
        return last is not None and (last.counts, last.bytes_received, last.bytes_total) == (
            progressed.counts,
            progressed.bytes_received,
            progressed.bytes_total,
        )

    def _require(self, *allowed: BatchState) -> None:
        if self.state not in allowed:
            raise InvalidState(f"the batch is {self.state}")
