"""The activity of a batch follows from recorded events and the time, equally for all readers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from application.views import STALLED_AFTER, BatchView, activity_of, replay
from domain.batch.aggregate import Batch
from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchEvent,
    BatchPaused,
    BatchPrioritized,
    BatchProgressed,
    BatchReopened,
    BatchResumed,
    BatchSealed,
)
from domain.batch.state import Outcome
from domain.upload.state import UploadState
from tests.builders import ALICE, BATCH, batch_histories, later, recorded, started

LONG_AGO = -3600.0
QUARTER = 15 * 60.0  # seconds
EDGE = STALLED_AFTER.total_seconds()


def by(seconds: float) -> dict[str, Any]:
    return {"at": later(seconds), "by": ALICE}


def progressed(
    seconds: float, counts: dict[str, int], *, received: int = 0, arrived: float | None = None
) -> BatchProgressed:
    return BatchProgressed(
        **by(seconds),
        counts={UploadState(state): count for state, count in counts.items()},
        bytes_received=received,
        bytes_total=100,
        percent=10.0,
        through=1,
        arrived_at=None if arrived is None else later(arrived),
    )


def row(*events: BatchEvent) -> BatchView:
    return replay(recorded(BATCH, [started(at=later(LONG_AGO)), *events])).batches[BATCH]


SEALED = BatchSealed(**by(0))
PAUSED = BatchPaused(**by(3))

CASES: dict[str, tuple[tuple[BatchEvent, ...], float, str | None, float | None]] = {
    # Events, seconds from then to now; the activity, and its start.
    "nothing was declared": ((), 0, "waiting_for_files", LONG_AGO),
    "many declared and none arrived": (
        (progressed(0, {"registered": 100_000}),),
        QUARTER,
        "waiting_for_files",
        0,
    ),
    "the same, sealed": (
        (progressed(-1, {"registered": 100_000}), SEALED),
        QUARTER,
        "waiting_for_files",
        0,
    ),
    "a transfer goes on": (
        (progressed(0, {"transferring": 1}, received=5, arrived=0),),
        EDGE - 1,
        "receiving",
        None,
    ),
    "a sender went away": (
        (progressed(0, {"transferring": 1, "registered": 9}, received=5, arrived=0),),
        QUARTER,
        "stalled",
        0,
    ),
    "a sender of small files went away": (
        (progressed(0, {"completed": 30, "registered": 70}, received=30, arrived=-2),),
        QUARTER,
        "stalled",
        -2,
    ),
    "files arrive while others are processed": (
        (progressed(0, {"registered": 5, "processing": 2, "completed": 3}, received=5, arrived=0),),
        1,
        "receiving",
        None,
    ),
    "a sender went away, and what arrived is processed": (
        (
            progressed(
                QUARTER, {"transferring": 4, "processing": 1, "queued": 90}, received=5, arrived=0
            ),
        ),
        QUARTER + 1,
        "processing",
        None,
    ),
    "a sender went away, and what arrived was processed": (
        (progressed(QUARTER, {"transferring": 4, "completed": 91}, received=5, arrived=0),),
        QUARTER + 1,
        "stalled",
        0,
    ),
    "a worker is at it for long": (
        (progressed(0, {"processing": 1}, received=5, arrived=0), SEALED),
        QUARTER,
        "processing",
        None,
    ),
    "files wait for a worker": (
        (progressed(0, {"queued": 3}, received=5, arrived=-EDGE), SEALED),
        EDGE - 1,
        "processing",
        None,
    ),
    "no worker takes them": (
        (progressed(0, {"queued": 3}, received=5, arrived=-EDGE), SEALED),
        EDGE,
        "stalled",
        0,
    ),
    "every file is done and the batch is not sealed": (
        (progressed(0, {"completed": 3}, received=5, arrived=0),),
        1,
        "waiting_for_seal",
        0,
    ),
    "only rejected files": ((progressed(0, {"rejected": 2}),), 1, "waiting_for_seal", 0),
    "every file waits for a retry": (
        (progressed(0, {"retry_scheduled": 3, "completed": 1}, received=5, arrived=-9), SEALED),
        QUARTER,
        "waiting_for_retry",
        0,
    ),
    "some files wait for a retry": (
        (progressed(0, {"retry_scheduled": 3, "processing": 1}, received=5, arrived=-99),),
        QUARTER,
        "processing",
        None,
    ),
    "everything has ended, and the verdict comes": (
        (progressed(0, {"completed": 3}, received=5, arrived=0), SEALED),
        1,
        "processing",
        None,
    ),
    "everything has ended, and no verdict came": (
        (progressed(0, {"completed": 3}, received=5, arrived=0), SEALED),
        QUARTER,
        "stalled",
        0,
    ),
    "paused": (
        (progressed(0, {"transferring": 3}, received=5, arrived=0), PAUSED),
        4,
        "paused",
        3,
    ),
    "resumed": (
        (
            progressed(0, {"queued": 3}, received=5, arrived=0),
            PAUSED,
            BatchResumed(**by(QUARTER)),
        ),
        QUARTER + 1,
        "processing",
        None,
    ),
    "given priority while it is stalled": (
        (
            progressed(0, {"transferring": 1}, received=5, arrived=0),
            BatchPrioritized(**by(QUARTER), priority=3),
        ),
        QUARTER + 1,
        "stalled",
        0,
    ),
    "cancelling": ((BatchCancelled(**by(0), reason="x"),), 1, None, None),
    "completed": (
        (SEALED, BatchCompleted(**by(0), outcome=Outcome.SUCCEEDED, counts={}, duration=1.0)),
        1,
        None,
        None,
    ),
    "reopened": (
        (
            progressed(0, {"failed": 1}, received=5, arrived=-9),
            SEALED,
            BatchCompleted(**by(0), outcome=Outcome.FAILED, counts={}, duration=1.0),
            BatchReopened(**by(QUARTER), reason="x"),
            progressed(QUARTER, {"received": 1}, received=5, arrived=-9),
        ),
        QUARTER + 1,
        "processing",
        None,
    ),
    "an event of before creator were recorded": (
        (progressed(0, {"transferring": 1}, received=5),),
        QUARTER,
        "stalled",
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_activity_is_derived_from_facts_and_the_time(name: str) -> None:
    events, now, activity, since = CASES[name]

    doing = activity_of(row(*events), later(now))

    assert (doing.activity, doing.since) == (activity, None if since is None else later(since))


@settings(deadline=None)
@given(batch_histories(), st.integers(0, 400))
def test_an_activity_changes_at_its_until(history: list[BatchEvent], seconds: int) -> None:
    batch = replay(recorded(BATCH, history)).batches[BATCH]
    now = later(seconds)

    doing = activity_of(batch, now)

    if doing.until is None:
        forever = activity_of(batch, now + timedelta(days=365))
        assert (forever.activity, forever.since) == (doing.activity, doing.since)
        return
    assert now < doing.until
    just_before = activity_of(batch, doing.until - timedelta(microseconds=1))
    assert just_before == doing
    assert activity_of(batch, doing.until).activity != doing.activity


@settings(deadline=None)
@given(batch_histories(), st.integers(0, 400))
def test_only_a_batch_that_goes_on_has_an_activity(history: list[BatchEvent], seconds: int) -> None:
    batch = replay(recorded(BATCH, history)).batches[BATCH]

    doing = activity_of(batch, later(seconds))

    goes_on = batch.state in ("open", "sealed")
    assert (doing.activity is not None) == goes_on
    assert (doing.activity == "paused") == (goes_on and batch.paused)


def test_arrivals_are_recorded_with_the_count_that_met_them() -> None:
    batch = Batch.begin(BATCH, started())

    def count(batch: Batch, seconds: float, counts: dict[UploadState, int], bytes: int) -> Batch:
        (event,) = batch.record_progress(
            counts, bytes_received=bytes, bytes_total=9, through=1, at=later(seconds), by=ALICE
        )
        return batch.evolve(event)

    def arrived_at(batch: Batch) -> datetime | None:
        assert batch.progress is not None
        return batch.progress.arrived_at

    batch = count(batch, 1, {UploadState.REGISTERED: 3}, 0)
    assert arrived_at(batch) is None
    batch = count(batch, 2, {UploadState.REGISTERED: 2, UploadState.TRANSFERRING: 1}, 4)
    assert arrived_at(batch) == later(2)
    batch = count(batch, 3, {UploadState.REGISTERED: 1, UploadState.TRANSFERRING: 2}, 4)
    assert arrived_at(batch) == later(2)
    empty_file = {UploadState.TRANSFERRING: 2, UploadState.RECEIVED: 1}
    batch = count(batch, 4, empty_file, 4)
    assert arrived_at(batch) == later(4)
    batch = count(batch, 5, {UploadState.TRANSFERRING: 2, UploadState.COMPLETED: 1}, 4)
    assert arrived_at(batch) == later(4)


# How far a batch is that was called off.


@pytest.mark.parametrize(
    ("counts", "percent"),
    [
        ({"cancelled": 20}, 0.0),
        ({"cancelled": 15, "completed": 5}, 25.0),
        ({"cancelled": 1, "rejected": 1}, 50.0),
        ({"completed": 2}, 100.0),
        ({}, 0.0),
    ],
)
@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.EXPIRED])
def test_a_batch_that_was_called_off_is_as_far_as_it_got(
    counts: dict[str, int], percent: float, outcome: Outcome
) -> None:
    ended = {UploadState(state): count for state, count in counts.items()}
    completed = BatchCompleted(**by(9), outcome=outcome, counts=ended, duration=1.0)

    assert row(progressed(0, counts), completed).percent == percent


def test_a_batch_that_is_being_called_off_does_not_get_ahead_by_that() -> None:
    batch = Batch.begin(BATCH, started()).evolve(BatchCancelled(**by(1), reason="x"))

    (event,) = batch.record_progress(
        {UploadState.CANCELLED: 3, UploadState.COMPLETED: 1},
        bytes_received=0,
        bytes_total=0,
        through=1,
        **by(2),
    )

    assert isinstance(event, BatchProgressed)
    assert event.percent == 25.0
