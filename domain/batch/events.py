"""
The life of a batch, in the order it usually runs.

The tags are stored and streamed: they never change, whatever the classes are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypeAlias

from domain.batch.state import Counts, Outcome
from domain.event import Event, topic_of
from domain.retry import RetryPolicy


class BatchStarted(Event, frozen=True, kw_only=True, tag="batch.started"):
    """A job was opened for files to join.

    `failure_threshold` is the share of uploads (0 to 1) whose failure stops the batch;
    `fingerprint` is the hash of the request, to tell a repeated one from a different one.
    """

    owner: str
    label: str = ""
    pipeline: str
    retry_policy: RetryPolicy = RetryPolicy()
    priority: int = 0
    failure_threshold: float | None = None
    notify: str | None = None
    metadata: Mapping[str, str] = {}
    fingerprint: str = ""


class UploadsAdded(Event, frozen=True, kw_only=True, tag="batch.uploads_added"):
    """A list of files joined: how many, and the bytes they declared."""

    count: int
    bytes: int


class BatchSealed(Event, frozen=True, kw_only=True, tag="batch.sealed"):
    """No file may join any more."""


class BatchProgressed(Event, frozen=True, kw_only=True, tag="batch.progressed"):
    """The state of the whole set, counted from its uploads as of position `through`.

    `arrived_at` is when bytes, or a whole file, had last arrived; None while nothing has.
    """

    counts: Counts
    bytes_received: int
    bytes_total: int
    percent: float
    through: int
    arrived_at: datetime | None = None


class BatchPaused(Event, frozen=True, kw_only=True, tag="batch.paused"):
    """Nothing more is released to workers until the batch resumes.

    `reason` is empty where a person paused it, and says why the orchestrator did.
    """

    reason: str = ""


class BatchResumed(Event, frozen=True, kw_only=True, tag="batch.resumed"):
    """Uploads are released to workers again."""


class BatchPrioritized(Event, frozen=True, kw_only=True, tag="batch.prioritized"):
    """Its place among the batches of its owner changed: a higher one goes first."""

    priority: int


class BatchRetryRequested(Event, frozen=True, kw_only=True, tag="batch.retry_requested"):
    """Somebody asked for every failed upload to be processed again; the orchestrator sees to it."""


class BatchCancelled(Event, frozen=True, kw_only=True, tag="batch.cancelled"):
    """The job was called off; its unfinished uploads are being cancelled."""

    reason: str


class BatchExpired(Event, frozen=True, kw_only=True, tag="batch.expired"):
    """Nobody finished the job in time; its unfinished uploads are being expired."""


class BatchReopened(Event, frozen=True, kw_only=True, tag="batch.reopened"):
    """A retry gave a completed batch unfinished uploads again."""

    reason: str


class BatchErased(Event, frozen=True, kw_only=True, tag="batch.erased"):
    """Its personal fields are gone, with those of its uploads; the history stays."""


class BatchCompleted(Event, frozen=True, kw_only=True, tag="batch.completed"):
    """Every upload has ended; `duration` in seconds since the batch started."""

    outcome: Outcome
    counts: Counts
    duration: float


BatchEvent: TypeAlias = (
    BatchStarted
    | UploadsAdded
    | BatchSealed
    | BatchProgressed
    | BatchPaused
    | BatchResumed
    | BatchPrioritized
    | BatchRetryRequested
    | BatchCancelled
    | BatchExpired
    | BatchReopened
    | BatchCompleted
    | BatchErased
)

COMPLETING = frozenset({topic_of(BatchCompleted)})
"""Topics of a verdict."""

CLOSING = frozenset(topic_of(event) for event in (BatchSealed, BatchCancelled, BatchExpired))
"""Topics after which no file may join."""
