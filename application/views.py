"""Rows of the read model, as shown over HTTP, the feed and the CLI.

`position` is that of the last event a row reflects. Sizes are in bytes, durations in seconds.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, TypeVar
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.errors import NotFound
from application.ports.event_log import EventLog
from application.projection import Key, RowChanges, fold_changes
from domain.batch.state import BatchState
from domain.upload.state import ENDED, INCOMING, UploadState


class Activity(StrEnum):
    """Current activity of an unfinished batch."""

    RECEIVING = "receiving"
    PROCESSING = "processing"
    WAITING_FOR_FILES = "waiting_for_files"
    WAITING_FOR_SEAL = "waiting_for_seal"
    WAITING_FOR_RETRY = "waiting_for_retry"
    STALLED = "stalled"
    PAUSED = "paused"


class BatchView(msgspec.Struct, kw_only=True):
    """One batch. `counts` holds how many uploads are in each state, `uploads` their sum.

    `pause_reason` is the reason of the orchestrator's pause; None for a person's. `active_at` is
    when its work last moved, `arrived_at` when bytes or a whole file last arrived.

    `activity` is what it is doing now; null once `state` is cancelling or
    completed. It waits, has stalled or was paused since `activity_since`. At `activity_until` the
    activity changes without a recorded event: read the batch again then.
    """

    id: UUID
    owner: str
    label: str = ""
    state: str = "open"
    outcome: str | None = None
    paused: bool = False
    pause_reason: str | None = None
    pipeline: str = ""
    priority: int = 0
    metadata: dict[str, str] = {}
    uploads: int = 0
    counts: dict[str, int] = {}
    bytes_received: int = 0
    bytes_total: int = 0
    percent: float = 0.0
    started_at: datetime
    started_by: str
    sealed_at: datetime | None = None
    completed_at: datetime | None = None
    updated_at: datetime
    version: int
    position: int
    active_at: datetime
    arrived_at: datetime | None = None
    paused_at: datetime | None = None
    activity: Activity | None = None
    activity_since: datetime | None = None
    activity_until: datetime | None = None


DERIVED = ("activity", "activity_since", "activity_until")
"""Fields that no row stores: they are derived from the others and the current time."""


class UploadView(msgspec.Struct, kw_only=True):
    """One upload. `phase` and `percent` are the progress of the transfer or the current step."""

    id: UUID
    batch: UUID
    owner: str
    path: str
    size: int | None = None
    received: int = 0
    media_type: str | None = None
    checksum: str | None = None
    metadata: dict[str, str] = {}
    pipeline: str = ""
    state: str = "registered"
    phase: str | None = None
    percent: float | None = None
    attempt: int = 0
    error: str | None = None
    error_step: str | None = None
    retry_at: datetime | None = None
    results: dict[str, dict[str, Any]] = {}
    artifacts: dict[str, str] = {}
    blob: str | None = None
    registered_at: datetime
    received_at: datetime | None = None
    ended_at: datetime | None = None
    updated_at: datetime
    version: int
    position: int


class AttemptView(msgspec.Struct, kw_only=True):
    """One attempt; `state` is running, succeeded, failed or abandoned."""

    upload: UUID
    number: int
    worker: str
    state: str = "running"
    step: str | None = None
    percent: float | None = None
    error_type: str | None = None
    message: str | None = None
    permanent: bool | None = None
    retry_at: datetime | None = None
    started_at: datetime
    ended_at: datetime | None = None
    duration: float | None = None
    position: int


# Activity of a batch, derived from its row and the current time.
#
# The row holds recorded facts: counts, when its work last moved, when files last arrived. A stall
# is not recorded as an event: it is derived from these facts when a batch is read. API, feed,
# command line and page all use this function.

STALLED_AFTER = timedelta(seconds=60)
"""A batch that should be moving, and did not for so long, is stalled.

Transfers under way record progress every few seconds at the latest, so it is far above that.
"""


def utc_now() -> datetime:
    return datetime.now(UTC)


class Doing(msgspec.Struct, frozen=True):
    """Activity of a batch, with its beginning and the time at which it changes by itself.

    At `until` it is another one, although nothing was recorded.
    """

    activity: Activity | None = None
    since: datetime | None = None
    until: datetime | None = None


def show_activity(batch: BatchView, now: datetime) -> BatchView:
    """Return the batch with its current activity."""
    doing = activity_of(batch, now)
    batch.activity = doing.activity
    batch.activity_since = doing.since
    batch.activity_until = doing.until
    return batch


def show_activity_then(batch: BatchView, then: datetime) -> BatchView:
    """Return the batch with its activity at a time in the past."""
    batch = show_activity(batch, then)
    batch.activity_until = None
    return batch


def activity_of(batch: BatchView, now: datetime) -> Doing:
    """Derive the activity of a batch; an empty Activity for one that is ending or has ended."""
    if batch.state not in (BatchState.OPEN, BatchState.SEALED):
        return Doing()
    if batch.paused:
        return Doing(Activity.PAUSED, batch.paused_at)
    incoming, working = _sum(batch, *INCOMING), _sum(batch, *_WORKING)
    arrival = batch.arrived_at
    if incoming and arrival is not None and now < arrival + STALLED_AFTER:
        return Doing(Activity.RECEIVING, until=arrival + STALLED_AFTER)
    if _sum(batch, UploadState.PROCESSING):  # a worker that is gone is found out by its heartbeat
        return Doing(Activity.PROCESSING)
    if working:
        return _moving(batch, now)
    if incoming:
        if arrival is not None:
            return Doing(Activity.STALLED, arrival)
        return Doing(Activity.WAITING_FOR_FILES, batch.active_at)
    if _sum(batch, UploadState.RETRY_SCHEDULED):
        return Doing(Activity.WAITING_FOR_RETRY, batch.active_at)
    if batch.state == BatchState.SEALED:  # everything has ended: the verdict is about to be found
        return _moving(batch, now)
    if _sum(batch, *ENDED):
        return Doing(Activity.WAITING_FOR_SEAL, batch.active_at)
    return Doing(Activity.WAITING_FOR_FILES, batch.active_at)


_WORKING = (UploadState.RECEIVED, UploadState.QUEUED, UploadState.PROCESSING)


def _moving(batch: BatchView, now: datetime) -> Doing:
    """Return the activity of a batch with work to do: active, or stalled after long inactivity."""
    end = batch.active_at + STALLED_AFTER
    if now < end:
        return Doing(Activity.PROCESSING, until=end)
    return Doing(Activity.STALLED, batch.active_at)


def _sum(batch: BatchView, *states: UploadState) -> int:
    return sum(batch.counts.get(state, 0) for state in states)


# Time travel: rows as they were, folded in memory by the projection of the read model.

EVENTS_PER_PAGE = 10_000  # events held in memory at a time

Moment: TypeAlias = int | datetime
"""A position in the log, or a time (UTC)."""

View = TypeVar("View", BatchView, UploadView, AttemptView)
Owned = TypeVar("Owned", BatchView, UploadView)


class ReplayedRows(msgspec.Struct):
    """The rows that follow from some events."""

    batches: dict[Key, BatchView] = msgspec.field(default_factory=dict)
    uploads: dict[Key, UploadView] = msgspec.field(default_factory=dict)
    attempts: dict[Key, AttemptView] = msgspec.field(default_factory=dict)

    def apply(self, events: Iterable[RecordedEvent]) -> None:
        """Apply more events, which follow those applied before."""
        folded = fold_changes(events)
        _apply(folded.tables["batches"], self.batches, BatchView)
        _apply(folded.tables["uploads"], self.uploads, UploadView)
        _apply(folded.tables["attempts"], self.attempts, AttemptView)


def replay(events: Iterable[RecordedEvent]) -> ReplayedRows:
    """Return the rows after these events, from the first of each stream on."""
    rows = ReplayedRows()
    rows.apply(events)
    return rows


async def upload_at(log: EventLog, id: UUID, at: Moment, *, owner: str | None) -> UploadView:
    """Return the upload as its owner (None: every owner) saw it then.

    Raises NotFound if it did not exist yet, or belongs to another owner; Unavailable.
    """
    rows = await _rows_of(log, id, at)
    return _owned(rows.uploads.get(id), owner)


async def batch_at(
    log: EventLog, id: UUID, at: Moment, *, owner: str | None, now: datetime | None = None
) -> BatchView:
    """The batch, likewise, with what it was doing then; no moment is later than `now`."""
    rows = await _rows_of(log, id, at)
    batch = _owned(rows.batches.get(id), owner)
    then = await _time_of(log, at, batch, now)
    return show_activity_then(batch, then if now is None else min(then, now))


async def _time_of(log: EventLog, at: Moment, batch: BatchView, now: datetime | None) -> datetime:
    """Return the time of a moment; for a position, the time of its event or of the next one."""
    if isinstance(at, datetime):
        return at
    if at == batch.position:
        return batch.updated_at
    events = await log.read(max(at - 1, 0), limit=1)
    if not events:  # beyond the end of the log
        return now or batch.updated_at
    return max(batch.updated_at, events[0].event.at)


async def _rows_of(log: EventLog, stream: UUID, at: Moment) -> ReplayedRows:
    position = at if isinstance(at, int) else await log.position_at(at)
    rows, version = ReplayedRows(), 0
    while events := await log.stream(
        stream, after=version, upto_position=position, limit=EVENTS_PER_PAGE
    ):
        rows.apply(events)
        version = events[-1].version
        if len(events) < EVENTS_PER_PAGE:
            break
    return rows


def _apply(changes: RowChanges, rows: dict[Key, View], view: type[View]) -> None:
    for key, columns in changes.created.items():
        rows[key] = view(**columns)
    for key, columns in changes.updated.items():
        row = rows[key]
        for name, value in columns.items():
            setattr(row, name, value)


def _owned(row: Owned | None, owner: str | None) -> Owned:
    if row is None or owner not in (None, row.owner):
        raise NotFound("there was no such thing then")
    return row


FAILURES = (UploadState.FAILED, UploadState.QUARANTINED, UploadState.REJECTED)
"""States of files that need attention."""

MAX_FAILURE_GROUPS = 100


class ReportRow(msgspec.Struct, frozen=True, kw_only=True):
    """Result of one file; `error` is the last error, in the step `step`."""

    id: UUID
    path: str
    state: str
    size: int | None
    media_type: str | None
    attempts: int
    step: str | None
    error: str | None
    registered_at: datetime
    received_at: datetime | None
    ended_at: datetime | None


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failures whose messages differ only in paths and numbers.

    `example` is the message of one of them, `path` its file.
    """

    state: str
    step: str | None
    reason: str
    uploads: int
    example: str
    path: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A batch at one moment, `position` of the log; `files` can be gone through once.

    `reasons` has the most frequent first, `MAX_FAILURE_GROUPS` at most.
    """

    batch: BatchView
    position: int
    reasons: list[FailureGroup]
    files: AsyncIterator[ReportRow]


class Reports(Protocol):
    """Completion reports, each from one snapshot."""

    def report(
        self, batch: UUID, *, owner: str | None, only_failed: bool = False
    ) -> AbstractAsyncContextManager[Report]:
        """The files in the order of their paths, or only those of the states `FAILURES`.

        Little of it is in memory at any time. Raises NotFound, Unavailable.
        """
