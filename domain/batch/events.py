"""
Events of batches, in the order in which they usually happen.

Everything about an event is declared at its class (docs/contributing/add-an-event.md). Tags are
stored and streamed: they never change, whatever the classes are called.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypeAlias, get_args

from domain.batch.state import Counts, Outcome
from domain.event import Event, Personal, Public, event_type, topic_of
from domain.retry import RetryPolicy


@event_type("Batch started", details="[{label}, ]pipeline {pipeline}", delivered=True, opens=True)
class BatchStarted(Event, frozen=True, kw_only=True, tag="batch.started"):
    """A batch was started; files may be added to it.

    `failure_threshold` is the share of uploads (0 to 1) whose failure pauses the batch;
    `fingerprint` is the hash of the request: a repeated request has the same, another one not.
    It is personal because a short request can be guessed from it.
    """

    owner: Public[str]
    label: Personal[str] = ""
    pipeline: Public[str]
    retry_policy: RetryPolicy = RetryPolicy()
    priority: int = 0
    failure_threshold: float | None = None
    notify: Personal[str | None] = None
    metadata: Personal[Mapping[str, str]] = {}
    fingerprint: Personal[str] = ""


@event_type("Files added", icon="transfer", details="{count:files}, {bytes:bytes}")
class UploadsAdded(Event, frozen=True, kw_only=True, tag="batch.uploads_added"):
    """Files were added, with their number and declared bytes."""

    count: int
    bytes: int


@event_type("Sealed", icon="done", delivered=True)
class BatchSealed(Event, frozen=True, kw_only=True, tag="batch.sealed"):
    """No file may be added any more."""


@event_type(
    "Counted", icon="processing", details="{percent:percent}: {counts:states}", progress=True
)
class BatchProgressed(Event, frozen=True, kw_only=True, tag="batch.progressed"):
    """The uploads of the batch, counted as of position `through`.

    `arrived_at` is when bytes, or a whole file, last arrived; None before the first.
    """

    counts: Counts
    bytes_received: int
    bytes_total: int
    percent: float
    through: int
    arrived_at: datetime | None = None


@event_type("Paused", icon="paused", tone="warn", details="{reason}", delivered=True)
class BatchPaused(Event, frozen=True, kw_only=True, tag="batch.paused"):
    """Nothing more is released to workers until the batch resumes.

    `reason` is empty if a person paused it, and given if the orchestrator did.
    """

    reason: Public[str] = ""


@event_type("Resumed", icon="processing", tone="active", delivered=True)
class BatchResumed(Event, frozen=True, kw_only=True, tag="batch.resumed"):
    """Uploads are released to workers again."""


@event_type("Priority set", icon="transfer", details="{priority}")
class BatchPrioritized(Event, frozen=True, kw_only=True, tag="batch.prioritized"):
    """The priority among the batches of the owner changed: a higher one goes first."""

    priority: int


@event_type("Retry of failed ones", icon="retry", tone="warn")
class BatchRetryRequested(Event, frozen=True, kw_only=True, tag="batch.retry_requested"):
    """All failed uploads are to be processed again; the orchestrator queues them."""


@event_type("Batch renamed", icon="transfer", details="{label:label}", delivered=True)
class BatchRenamed(Event, frozen=True, kw_only=True, tag="batch.renamed"):
    """The label changed; webhooks that filter by label use the new one from this event on."""

    label: Personal[str]


@event_type("Batch cancelled", icon="stopped", tone="warn", details="{reason}", delivered=True)
class BatchCancelled(Event, frozen=True, kw_only=True, tag="batch.cancelled"):
    """The batch was cancelled; the orchestrator cancels its unfinished uploads."""

    reason: Personal[str]


@event_type("Batch expired", icon="gone", delivered=True)
class BatchExpired(Event, frozen=True, kw_only=True, tag="batch.expired"):
    """The batch was not sealed in time; the orchestrator expires its unfinished uploads."""


@event_type("Reopened", icon="retry", tone="warn", details="{reason}", delivered=True)
class BatchReopened(Event, frozen=True, kw_only=True, tag="batch.reopened"):
    """A completed batch has unfinished uploads again, after a retry or a release."""

    reason: Public[str]


@event_type("Erased", icon="gone")
class BatchErased(Event, frozen=True, kw_only=True, tag="batch.erased"):
    """The personal fields of the batch are destroyed; the history stays."""


@event_type(
    "Batch completed",
    icon="done",
    tone="good",
    details="{outcome:words}, after {duration:duration}",
    delivered=True,
)
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
    | BatchRenamed
    | BatchCancelled
    | BatchExpired
    | BatchReopened
    | BatchCompleted
    | BatchErased
)

BATCH_EVENTS: tuple[type[BatchEvent], ...] = get_args(BatchEvent)

COMPLETING = frozenset({topic_of(BatchCompleted)})
"""Topics of an outcome."""

CLOSING = frozenset(topic_of(event) for event in (BatchSealed, BatchCancelled, BatchExpired))
"""Topics after which no file may be added."""
