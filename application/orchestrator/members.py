"""What the orchestrator knows of an upload and of a batch: as much as its decisions need."""

from __future__ import annotations

from datetime import datetime
from typing import Self
from uuid import UUID

import msgspec
from msgspec.structs import replace

from domain.batch.aggregate import Batch
from domain.batch.events import (
    BatchCancelled,
    BatchEvent,
    BatchExpired,
    BatchProgressed,
)
from domain.batch.state import BatchState, Counts, Outcome
from domain.upload.aggregate import Upload
from domain.upload.events import AttemptFailed, UploadEvent
from domain.upload.state import UploadState


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """An upload as of `version` of its stream.

    `job` is the job that carries it to the workers; `retry_at` is when its next attempt is due;
    `losses` is how many workers were lost while they processed it, 0 once it has ended.
    """

    upload: UUID
    batch: UUID
    owner: str
    state: UploadState
    version: int
    size: int | None = None
    received: int = 0
    attempt: int = 0
    worker: str | None = None
    retry_at: datetime | None = None
    job: int | None = None
    losses: int = 0

    @classmethod
    def begin(cls, id: UUID, event: UploadEvent) -> Self:
        return cls._of(Upload.begin(id, event), None, None)

    def evolve(self, event: UploadEvent) -> Self:
        return self.as_of(self.aggregate().evolve(event), event, self.job)

    @classmethod
    def as_of(cls, upload: Upload, last: object, job: int | None = None) -> Self:
        """The row of an upload whose last event is this one."""
        return cls._of(upload, last.retry_at if isinstance(last, AttemptFailed) else None, job)

    def aggregate(self) -> Upload:
        """The upload, with the fields that decide what may happen to it."""
        return Upload(
            id=self.upload,
            version=self.version,
            batch=self.batch,
            owner=self.owner,
            path="",
            size=self.size,
            state=self.state,
            received=self.received,
            attempt=self.attempt,
            worker=self.worker,
            losses=self.losses,
        )

    @classmethod
    def _of(cls, upload: Upload, retry_at: datetime | None, job: int | None) -> Self:
        return cls(
            upload=upload.id,
            batch=upload.batch,
            owner=upload.owner,
            state=upload.state,
            version=upload.version,
            size=upload.size,
            received=upload.received,
            attempt=upload.attempt,
            worker=upload.worker,
            retry_at=retry_at,
            job=None if upload.state.ended else job,
            losses=0 if upload.state.ended else upload.losses,
        )


class Followed(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as of `version` of its stream; `dirty` until its counts have been recorded.

    `reason` says why it was called off; `progress` is the last count recorded of it; `active_at`
    is when something last happened to it, or to one of its uploads.
    """

    batch: UUID
    owner: str
    version: int
    started_at: datetime
    active_at: datetime
    priority: int = 0
    state: BatchState = BatchState.OPEN
    paused: bool = False
    ending: Outcome | None = None
    reason: str = ""
    progress: BatchProgressed | None = None
    dirty: bool = True
    failure_threshold: float | None = None
    pardoned: int = 0

    @classmethod
    def begin(cls, id: UUID, event: BatchEvent) -> Self:
        return cls._of(Batch.begin(id, event), "", event.at)

    def evolve(self, event: BatchEvent) -> Self:
        """The batch after the event, which is to be looked at again."""
        match event:
            case BatchCancelled(reason=reason):
                pass
            case BatchExpired():
                reason = "the batch expired"
            case _:
                reason = self.reason
        return self._of(self.aggregate().evolve(event), reason, event.at)

    def aggregate(self) -> Batch:
        """The batch, with the fields that decide what may happen to it."""
        return Batch(
            id=self.batch,
            version=self.version,
            owner=self.owner,
            started_at=self.started_at,
            priority=self.priority,
            state=self.state,
            sealed=self.state is not BatchState.OPEN,
            paused=self.paused,
            pending_outcome=self.ending,
            progress=self.progress,
            failure_threshold=self.failure_threshold,
            acknowledged_failures=self.pardoned,
        )

    def touched(self, at: datetime) -> Self:
        """Something happened to one of its uploads."""
        return replace(self, dirty=True, active_at=at)

    def cleaned(self) -> Self:
        return replace(self, dirty=False) if self.dirty else self

    @classmethod
    def _of(cls, batch: Batch, reason: str, active_at: datetime) -> Self:
        return cls(
            batch=batch.id,
            owner=batch.owner,
            version=batch.version,
            started_at=batch.started_at,
            active_at=active_at,
            priority=batch.priority,
            state=batch.state,
            paused=batch.paused,
            ending=batch.pending_outcome,
            reason=reason,
            progress=batch.progress,
            failure_threshold=batch.failure_threshold,
            pardoned=batch.acknowledged_failures,
        )


class Tally(msgspec.Struct, frozen=True):
    """A batch's uploads, counted: by state, and their bytes. Rejected files have none."""

    counts: Counts
    bytes_received: int = 0
    bytes_total: int = 0
