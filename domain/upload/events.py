"""
The life of an upload, in the order it usually runs.

The tags are stored and streamed: they never change, whatever the classes are called.
Sizes are in bytes, durations in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from domain.event import Event
from domain.retry import RetryPolicy

TRANSFER = "transfer"


class UploadRegistered(Event, frozen=True, kw_only=True, tag="upload.registered"):
    """A file was announced, as part of a batch."""

    batch: UUID
    owner: str
    path: str
    size: int | None = None
    media_type: str | None = None
    checksum: str | None = None
    metadata: Mapping[str, str] = {}
    pipeline: str
    retry_policy: RetryPolicy = RetryPolicy()


class UploadRejected(Event, frozen=True, kw_only=True, tag="upload.rejected"):
    """A file was announced and turned away: `code` for programs, `message` for people."""

    batch: UUID
    owner: str
    path: str
    size: int | None = None
    media_type: str | None = None
    code: str
    message: str


class SizeDeclared(Event, frozen=True, kw_only=True, tag="upload.size_declared"):
    """The size became known after the registration."""

    size: int


class FileProgressed(Event, frozen=True, kw_only=True, tag="upload.file_progressed"):
    """Work on the file got this far: `phase` is `transfer` or the name of a pipeline step.

    `done` and `total` are in bytes for a transfer and in the step's own units otherwise;
    `attempt` is 0 during transfer; `percent` is None while the total is unknown.
    """

    phase: str
    attempt: int = 0
    done: int
    total: int | None = None
    percent: float | None = None


class TransferInterrupted(Event, frozen=True, kw_only=True, tag="upload.transfer_interrupted"):
    """A sender went away before the end; the bytes that arrived are kept."""

    received: int
    reason: str


class BytesLost(Event, frozen=True, kw_only=True, tag="upload.bytes_lost"):
    """The store holds fewer bytes than were recorded: reported, never silent."""

    recorded: int
    stored: int


class FileReceived(Event, frozen=True, kw_only=True, tag="upload.file_received"):
    """Every byte is stored, durably, under this blob name."""

    size: int
    blob: str


class UploadQueued(Event, frozen=True, kw_only=True, tag="upload.queued"):
    """The upload was released to the workers."""


class AttemptStarted(Event, frozen=True, kw_only=True, tag="upload.attempt_started"):
    """A worker claimed the upload; from here on only this attempt may speak for it."""

    number: int
    worker: str


class AttemptFailed(Event, frozen=True, kw_only=True, tag="upload.attempt_failed"):
    """The attempt met an error in `step`; `retry_at` is None when it was the last."""

    number: int
    step: str
    error_type: str
    message: str
    permanent: bool
    duration: float
    retry_at: datetime | None = None


class AttemptAbandoned(Event, frozen=True, kw_only=True, tag="upload.attempt_abandoned"):
    """The attempt ended without a verdict: its worker died, stopped or was told to."""

    number: int
    worker: str
    reason: str


class AttemptSucceeded(Event, frozen=True, kw_only=True, tag="upload.attempt_succeeded"):
    """Every step passed: `results` by step, `artifacts` as name to blob name."""

    number: int
    results: Mapping[str, Mapping[str, Any]] = {}
    artifacts: Mapping[str, str] = {}
    duration: float


class UploadCompleted(Event, frozen=True, kw_only=True, tag="upload.completed"):
    """The file is stored and processed."""


class UploadFailed(Event, frozen=True, kw_only=True, tag="upload.failed"):
    """No attempt is left; `message` is the last error as it was."""

    step: str
    message: str


class UploadQuarantined(Event, frozen=True, kw_only=True, tag="upload.quarantined"):
    """A step found the file dangerous; its bytes are held back."""

    step: str
    reason: str


class RetryRequested(Event, frozen=True, kw_only=True, tag="upload.retry_requested"):
    """Somebody asked for a failed upload to be processed again, with a new allowance."""


class UploadReleased(Event, frozen=True, kw_only=True, tag="upload.released"):
    """Somebody overruled the step that held a quarantined file back."""

    reason: str


class UploadCancelled(Event, frozen=True, kw_only=True, tag="upload.cancelled"):
    """The upload was called off."""

    reason: str


class UploadExpired(Event, frozen=True, kw_only=True, tag="upload.expired"):
    """The file did not arrive in time."""


class UploadErased(Event, frozen=True, kw_only=True, tag="upload.erased"):
    """Bytes and personal fields are gone, also those of so many attempts; the history stays."""

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
