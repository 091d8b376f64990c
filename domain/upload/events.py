"""
Events of uploads, in the order in which they usually happen. Sizes in bytes, durations in seconds.

Everything about an event is declared at its class (docs/contributing/add-an-event.md). Tags are
stored and streamed: they never change, whatever the classes are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias, get_args
from uuid import UUID

from domain.event import Event, Personal, Public, event_type
from domain.retry import RetryPolicy

TRANSFER = "transfer"
"""The phase of a file whose bytes are arriving; every other phase is a step of the pipeline."""


@event_type("Registered", details="{size:bytes}", opens=True)
class UploadRegistered(Event, frozen=True, kw_only=True, tag="upload.registered"):
    """A file was registered in a batch, before its bytes arrive."""

    batch: UUID
    owner: Public[str]
    path: Personal[str]
    size: int | None = None
    media_type: Personal[str | None] = None
    checksum: Personal[str | None] = None
    metadata: Personal[Mapping[str, str]] = {}
    pipeline: Public[str]
    retry_policy: RetryPolicy = RetryPolicy()


@event_type("Rejected", icon="refused", tone="bad", details="{message}", delivered=True)
class UploadRejected(Event, frozen=True, kw_only=True, tag="upload.rejected"):
    """A file was not accepted into its batch: `code` for programs, `message` for people."""

    batch: UUID
    owner: Public[str]
    path: Personal[str]
    size: int | None = None
    media_type: Personal[str | None] = None
    code: Public[str]
    message: Personal[str]


@event_type("Size declared", details="{size:bytes}")
class SizeDeclared(Event, frozen=True, kw_only=True, tag="upload.size_declared"):
    """The size of the file, declared after the registration."""

    size: int


@event_type(
    "Progressed",
    icon="transfer",
    tone="active",
    details="{done:progress}[, {percent:percent}]",
    progress=True,
)
class FileProgressed(Event, frozen=True, kw_only=True, tag="upload.file_progressed"):
    """Progress of the transfer or of a step: `phase` is `transfer` or the name of a pipeline step.

    `done` and `total` are in bytes for a transfer and in the step's own units otherwise;
    `attempt` is 0 during transfer; `percent` is None while the total is unknown.
    """

    phase: Public[str]
    attempt: int = 0
    done: int
    total: int | None = None
    percent: float | None = None


@event_type("Interrupted", icon="paused", tone="warn", details="{received:bytes} kept: {reason}")
class TransferInterrupted(Event, frozen=True, kw_only=True, tag="upload.transfer_interrupted"):
    """The connection ended before the last byte; the bytes that arrived are kept."""

    received: int
    reason: Public[str]


@event_type(
    "Bytes lost",
    icon="danger",
    tone="bad",
    details="{recorded:bytes} recorded, {stored:bytes} stored",
)
class BytesLost(Event, frozen=True, kw_only=True, tag="upload.bytes_lost"):
    """The store has fewer bytes than were recorded; the transfer resumes from `stored`."""

    recorded: int
    stored: int


@event_type("Received", icon="queued", details="{size:bytes}", delivered=True)
class FileReceived(Event, frozen=True, kw_only=True, tag="upload.file_received"):
    """Every byte of the file is stored durably, in this blob."""

    size: int
    blob: Public[str]


@event_type("Queued", icon="queued")
class UploadQueued(Event, frozen=True, kw_only=True, tag="upload.queued"):
    """The upload was queued for the workers."""


@event_type(
    "Attempt started", icon="processing", tone="active", details="attempt {number} on {worker}"
)
class AttemptStarted(Event, frozen=True, kw_only=True, tag="upload.attempt_started"):
    """A worker claimed the upload; until it ends, only this attempt may record events."""

    number: int
    worker: Public[str]


@event_type(
    "Attempt failed",
    icon="failed",
    tone="bad",
    details="attempt {number}, {step}: {message}",
    delivered=True,
)
class AttemptFailed(Event, frozen=True, kw_only=True, tag="upload.attempt_failed"):
    """The attempt failed in `step`; `retry_at` is None if no other attempt follows."""

    number: int
    step: Public[str]
    error_type: Public[str]
    message: Personal[str]
    permanent: bool
    duration: float
    retry_at: datetime | None = None


@event_type("Attempt abandoned", icon="stopped", tone="warn", details="attempt {number}: {reason}")
class AttemptAbandoned(Event, frozen=True, kw_only=True, tag="upload.attempt_abandoned"):
    """The attempt ended without a result: its worker died or stopped, or it was cancelled.

    `reason` repeats that of a cancellation. In events of version 0.1 it is in the clear.
    """

    number: int
    worker: Public[str]
    reason: Personal[str]


@event_type(
    "Attempt succeeded",
    icon="done",
    tone="good",
    details="attempt {number}, in {duration:duration}",
)
class AttemptSucceeded(Event, frozen=True, kw_only=True, tag="upload.attempt_succeeded"):
    """Every step succeeded: `results` by step, `artifacts` as name to blob name."""

    number: int
    results: Personal[Mapping[str, Mapping[str, Any]]] = {}
    artifacts: Public[Mapping[str, str]] = {}
    duration: float


@event_type("Completed", icon="done", tone="good", delivered=True)
class UploadCompleted(Event, frozen=True, kw_only=True, tag="upload.completed"):
    """The file is stored and processed."""


@event_type("Failed", icon="failed", tone="bad", details="{step}: {message}", delivered=True)
class UploadFailed(Event, frozen=True, kw_only=True, tag="upload.failed"):
    """No attempt is left; `message` is the last error, unchanged."""

    step: Public[str]
    message: Personal[str]


@event_type("Quarantined", icon="danger", tone="bad", details="{step}: {reason}", delivered=True)
class UploadQuarantined(Event, frozen=True, kw_only=True, tag="upload.quarantined"):
    """A step found the file dangerous; it is held until a person releases it."""

    step: Public[str]
    reason: Personal[str]


@event_type("Retry requested", icon="retry", tone="warn")
class RetryRequested(Event, frozen=True, kw_only=True, tag="upload.retry_requested"):
    """A failed upload is to be processed again, with the full number of attempts."""


@event_type("Released", icon="done", tone="good", details="{reason}", delivered=True)
class UploadReleased(Event, frozen=True, kw_only=True, tag="upload.released"):
    """A person released the file from quarantine, against the result of the step."""

    reason: Personal[str]


@event_type("Cancelled", icon="stopped", details="{reason}", delivered=True)
class UploadCancelled(Event, frozen=True, kw_only=True, tag="upload.cancelled"):
    """The upload was cancelled."""

    reason: Personal[str]


@event_type("Expired", icon="gone", delivered=True)
class UploadExpired(Event, frozen=True, kw_only=True, tag="upload.expired"):
    """The file did not arrive in time."""


@event_type("Erased", icon="gone")
class UploadErased(Event, frozen=True, kw_only=True, tag="upload.erased"):
    """Bytes and personal fields are destroyed, with those of all `attempts`; the history stays."""

    attempts: int = 0


UploadEvent: TypeAlias = (
    UploadRegistered
    | UploadRejected
    | SizeDeclared
    | FileProgressed
    | TransferInterrupted
    | BytesLost
    | FileReceived
    | UploadQueued
    | AttemptStarted
    | AttemptFailed
    | AttemptAbandoned
    | AttemptSucceeded
    | UploadCompleted
    | UploadFailed
    | UploadQuarantined
    | RetryRequested
    | UploadReleased
    | UploadCancelled
    | UploadExpired
    | UploadErased
)

UPLOAD_EVENTS: tuple[type[UploadEvent], ...] = get_args(UploadEvent)
