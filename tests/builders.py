"""Builders of events, aggregates and random legal histories."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from hypothesis import strategies as st

from application.append import RecordedEvent
from domain.batch.aggregate import Batch
from domain.batch.events import BatchEvent, BatchStarted
from domain.batch.state import Counts
from domain.catalogue import DomainEvent
from domain.errors import CommandRejected
from domain.ids import upload_id_for
from domain.retry import RetryPolicy
from domain.upload.aggregate import Failure, Upload
from domain.upload.events import (
    AttemptStarted,
    FileReceived,
    UploadEvent,
    UploadQueued,
    UploadRegistered,
    UploadRejected,
)
from domain.upload.state import ENDED, UploadState

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BATCH = UUID("019b0000-0000-7000-8000-000000000001")
WORKER = "worker:one"
ALICE = "key:alice"
FILE = upload_id_for(BATCH, "photos/a.jpg", b"")


def later(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def registered(size: int | None = 100, **more: Any) -> UploadRegistered:
    known: dict[str, Any] = {
        "at": NOON,
        "by": ALICE,
        "batch": BATCH,
        "owner": "acme",
        "path": "photos/a.jpg",
        "pipeline": "default",
    }
    return UploadRegistered(**{**known, "size": size, **more})


def received(size: int = 100) -> FileReceived:
    return FileReceived(at=NOON, by=ALICE, size=size, blob="uploads/a")


def queued() -> UploadQueued:
    return UploadQueued(at=NOON, by="orchestrator")


def attempt(number: int = 1) -> AttemptStarted:
    return AttemptStarted(at=NOON, by=WORKER, number=number, worker=WORKER)


def given(first: UploadEvent, *history: UploadEvent, id: UUID = FILE) -> Upload:
    upload = Upload.begin(id, first)
    for event in history:
        upload = upload.evolve(event)
    return upload


def processing(number: int = 1, **more: Any) -> Upload:
    return given(registered(**more), received(), queued(), attempt(number))


def failure(message: str = "connection reset", *, permanent: bool = False) -> Failure:
    return Failure(step="checksum", error_type="OSError", message=message, permanent=permanent)


def started(**more: Any) -> BatchStarted:
    known: dict[str, Any] = {"at": NOON, "by": ALICE, "owner": "acme", "pipeline": "default"}
    return BatchStarted(**{**known, **more})


def given_batch(first: BatchStarted, *history: BatchEvent, id: UUID = BATCH) -> Batch:
    batch = Batch.begin(id, first)
    for event in history:
        batch = batch.evolve(event)
    return batch


def recorded(stream: UUID, events: Iterable[DomainEvent], *, after: int = 0) -> list[RecordedEvent]:
    """The events of one stream at consecutive positions beyond `after`."""
    return [
        RecordedEvent(stream, version, after + version, event)
        for version, event in enumerate(events, start=1)
    ]


# Any legal history: commands drawn at random, of which the aggregate refuses some.

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]
Command: TypeAlias = Callable[[Any, Draw, dict[str, Any]], tuple[Any, ...]]

_UP_TO_100 = st.integers(0, 100)
_TEXTS = st.text(max_size=8)
_SIZES = st.one_of(st.none(), _UP_TO_100)
_RESULTS = st.dictionaries(_TEXTS, st.dictionaries(_TEXTS, st.integers(-5, 5) | _TEXTS))
_FAILURES = st.builds(
    Failure, step=_TEXTS, error_type=_TEXTS, message=_TEXTS, permanent=st.booleans()
)
_COUNTS: st.SearchStrategy[Counts] = st.dictionaries(
    st.sampled_from(UploadState), st.integers(1, 9), max_size=4
)
_ENDED_COUNTS: st.SearchStrategy[Counts] = st.dictionaries(
    st.sampled_from(sorted(ENDED)), st.integers(1, 9), max_size=3
)

_UPLOAD_COMMANDS: tuple[Command, ...] = (
    lambda u, draw, now: u.declare_size(draw(_UP_TO_100), **now),
    lambda u, draw, now: u.progress_transfer(draw(_UP_TO_100), **now),
    lambda u, draw, now: u.interrupt_transfer(draw(_UP_TO_100), draw(_TEXTS), **now),
    lambda u, draw, now: u.record_data_loss(draw(_UP_TO_100), **now),
    lambda u, draw, now: u.receive(u.size if u.size is not None else u.received, "blob", **now),
    lambda u, draw, now: u.queue(**now),
    lambda u, draw, now: u.start_attempt(draw(st.sampled_from(["one", "two"])), **now),
    lambda u, draw, now: u.progress_step(u.attempt, draw(_TEXTS), draw(_UP_TO_100), 100, **now),
    lambda u, draw, now: u.fail_attempt(
        u.attempt, draw(_FAILURES), duration=0.5, random=0.5, **now
    ),
    lambda u, draw, now: u.quarantine(u.attempt, draw(_FAILURES), duration=0.5, **now),
    lambda u, draw, now: u.abandon_attempt(u.attempt, draw(_TEXTS), **now),
    lambda u, draw, now: u.succeed_attempt(
        u.attempt, results=draw(_RESULTS), artifacts={"thumbnail": "a"}, duration=0.5, **now
    ),
    lambda u, draw, now: u.request_retry(**now),
    lambda u, draw, now: u.release(draw(_TEXTS), **now),
    lambda u, draw, now: u.cancel(draw(_TEXTS), **now),
    lambda u, draw, now: u.expire(**now),
    lambda u, draw, now: u.erase(**now),
)
# Commands that advance an upload are drawn more often, so that many histories end.
_USUAL = _UPLOAD_COMMANDS[4:12]

_BATCH_COMMANDS: tuple[Command, ...] = (
    lambda b, draw, now: b.add_uploads(draw(_UP_TO_100), draw(_UP_TO_100), **now),
    lambda b, draw, now: b.seal(**now),
    lambda b, draw, now: b.pause(**now),
    lambda b, draw, now: b.resume(**now),
    lambda b, draw, now: b.prioritize(draw(st.integers(-5, 5)), **now),
    lambda b, draw, now: b.request_retry(**now),
    lambda b, draw, now: b.pause_if_failing(draw(_COUNTS), **now),
    lambda b, draw, now: b.cancel(draw(_TEXTS), **now),
    lambda b, draw, now: b.expire(**now),
    lambda b, draw, now: b.record_progress(
        draw(_COUNTS), bytes_received=draw(_UP_TO_100), bytes_total=100, through=1, **now
    ),
    lambda b, draw, now: b.complete(draw(_ENDED_COUNTS), **now),
    lambda b, draw, now: b.reopen(draw(_TEXTS), **now),
    lambda b, draw, now: b.rename(draw(_TEXTS), **now),
)
# Commands that do not end a batch are drawn more often: seal, pause, resume, progress.
_USUAL_OF_BATCHES = (*_BATCH_COMMANDS[1:4], _BATCH_COMMANDS[9])


@st.composite
def upload_histories(draw: Draw, batch: UUID = BATCH, path: str = "a.bin") -> list[UploadEvent]:
    """Draw any legal history of an upload."""
    first: UploadEvent = registered(
        draw(_SIZES), batch=batch, path=path, retry_policy=RetryPolicy(attempts=2)
    )
    if draw(st.integers(0, 9)) == 0:
        return [
            UploadRejected(
                at=NOON, by=ALICE, batch=batch, owner="acme", path=path, code="no", message="no"
            )
        ]
    commands = st.lists(st.sampled_from(_UPLOAD_COMMANDS + 3 * _USUAL), max_size=30)
    return [first, *_walk(Upload.begin(FILE, first), draw(commands), draw)]


@st.composite
def batch_histories(draw: Draw, *, fewest: int = 0) -> list[BatchEvent]:
    """Draw any legal history of a batch."""
    thresholds = st.none() | st.floats(0, 1)
    first = started(
        label=draw(_TEXTS),
        priority=draw(st.integers(-5, 5)),
        failure_threshold=draw(thresholds),
    )
    kinds = st.sampled_from(_BATCH_COMMANDS + 4 * _USUAL_OF_BATCHES)
    commands = st.lists(kinds, min_size=fewest, max_size=20)
    return [first, *_walk(Batch.begin(BATCH, first), draw(commands), draw)]


def _walk(aggregate: Any, commands: list[Command], draw: Draw) -> list[Any]:
    history: list[Any] = []
    for second, command in enumerate(commands, start=1):
        try:
            events = command(aggregate, draw, {"at": later(second), "by": ALICE})
        except CommandRejected:
            continue
        for event in events:
            aggregate = aggregate.evolve(event)
        history += events
    return history
