from __future__ import annotations

import pytest

from domain.batch.aggregate import MAX_LABEL, Batch
from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchErased,
    BatchEvent,
    BatchExpired,
    BatchPaused,
    BatchProgressed,
    BatchRenamed,
    BatchReopened,
    BatchResumed,
    BatchRetryRequested,
    BatchSealed,
    UploadsAdded,
)
from domain.batch.state import BatchState, Counts, Outcome, percent_of
from domain.errors import FieldError, InvalidState, ValidationFailed
from domain.upload.state import UploadState
from tests.builders import ALICE, NOON, given_batch, later, started

SEALED = BatchSealed(at=NOON, by=ALICE)
CANCELLED = BatchCancelled(at=NOON, by=ALICE, reason="wrong folder")
COMPLETED = BatchCompleted(
    at=NOON, by="orchestrator", outcome=Outcome.SUCCEEDED, counts={}, duration=1
)


def test_files_join_an_open_batch() -> None:
    assert given_batch(started()).add_uploads(3, 300, at=NOON, by=ALICE) == (
        UploadsAdded(at=NOON, by=ALICE, count=3, bytes=300),
    )


@pytest.mark.parametrize("end", [SEALED, CANCELLED, BatchExpired(at=NOON, by="orchestrator")])
def test_nothing_joins_a_batch_that_is_closed(
    end: BatchSealed | BatchCancelled | BatchExpired,
) -> None:
    with pytest.raises(InvalidState):
        given_batch(started(), end).add_uploads(1, 1, at=NOON, by=ALICE)


def test_sealing_twice_records_it_once() -> None:
    assert given_batch(started()).seal(at=NOON, by=ALICE) == (SEALED,)
    assert given_batch(started(), SEALED).seal(at=NOON, by=ALICE) == ()


@pytest.mark.parametrize(
    ("counts", "history", "outcome"),
    [
        ({UploadState.COMPLETED: 2}, (), Outcome.SUCCEEDED),
        ({}, (), Outcome.SUCCEEDED),
        (
            {UploadState.COMPLETED: 1, UploadState.FAILED: 1},
            (),
            Outcome.COMPLETED_WITH_FAILURES,
        ),
        (
            {UploadState.COMPLETED: 1, UploadState.REJECTED: 1},
            (),
            Outcome.COMPLETED_WITH_FAILURES,
        ),
        ({UploadState.FAILED: 2}, (), Outcome.FAILED),
        ({UploadState.COMPLETED: 1, UploadState.CANCELLED: 1}, (CANCELLED,), Outcome.CANCELLED),
    ],
)
def test_the_outcome_follows_from_the_set_of_uploads(
    counts: Counts, history: tuple[BatchCancelled, ...], outcome: Outcome
) -> None:
    batch = given_batch(started(), SEALED, *history)

    assert batch.complete(counts, at=later(5), by="orchestrator") == (
        BatchCompleted(
            at=later(5), by="orchestrator", outcome=outcome, counts=counts, duration=5.0
        ),
    )


def test_a_batch_with_unfinished_uploads_does_not_complete() -> None:
    with pytest.raises(InvalidState, match="not ended"):
        given_batch(started(), SEALED).complete(
            {UploadState.COMPLETED: 9, UploadState.RETRY_SCHEDULED: 1}, at=NOON, by="orchestrator"
        )


def test_an_open_batch_does_not_complete_however_finished_its_uploads_are() -> None:
    with pytest.raises(InvalidState, match="open"):
        given_batch(started()).complete({UploadState.COMPLETED: 9}, at=NOON, by="orchestrator")


def test_a_batch_completes_once() -> None:
    (completed,) = given_batch(started(), SEALED).complete({}, at=NOON, by="orchestrator")

    with pytest.raises(InvalidState, match="completed"):
        given_batch(started(), SEALED, completed).complete({}, at=NOON, by="orchestrator")


def test_a_retry_reopens_a_completed_batch_for_a_new_outcome() -> None:
    (completed,) = given_batch(started(), SEALED).complete(
        {UploadState.FAILED: 1}, at=NOON, by="orchestrator"
    )
    (reopened,) = given_batch(started(), SEALED, completed).reopen(
        "an upload is retried", at=NOON, by="orchestrator"
    )

    batch = given_batch(started(), SEALED, completed, reopened)

    assert isinstance(reopened, BatchReopened)
    assert (batch.state, batch.outcome) == (BatchState.SEALED, None)


def test_the_same_standing_is_not_recorded_twice() -> None:
    standing = {UploadState.COMPLETED: 1, UploadState.QUEUED: 1}
    (progressed,) = given_batch(started()).record_progress(
        standing, bytes_received=20, bytes_total=20, through=7, at=NOON, by="orchestrator"
    )

    assert isinstance(progressed, BatchProgressed)
    assert progressed.percent == 75.0
    assert (
        given_batch(started(), progressed).record_progress(
            standing, bytes_received=20, bytes_total=20, through=9, at=later(1), by="orchestrator"
        )
        == ()
    )


def test_percent_reaches_100_when_every_upload_has_ended_and_not_before() -> None:
    almost = {UploadState.COMPLETED: 99_999, UploadState.PROCESSING: 1}

    assert percent_of(almost, 10**9, 10**9) < 100
    assert percent_of({UploadState.COMPLETED: 9, UploadState.FAILED: 1}, 9, 10) == 100.0
    assert percent_of({}, 0, 0) == 0.0


def test_pausing_a_completed_batch_is_refused() -> None:
    (completed,) = given_batch(started(), SEALED).complete({}, at=NOON, by="orchestrator")

    with pytest.raises(InvalidState, match="completed"):
        given_batch(started(), SEALED, completed).pause(at=NOON, by=ALICE)


def test_a_paused_batch_resumes_once() -> None:
    paused = given_batch(started(), BatchPaused(at=NOON, by=ALICE))

    (resumed,) = paused.resume(at=NOON, by=ALICE)

    assert paused.evolve(resumed).resume(at=NOON, by=ALICE) == ()


def failing(failed: int, completed: int = 0) -> Counts:
    return {UploadState.FAILED: failed, UploadState.COMPLETED: completed}


@pytest.mark.parametrize(
    ("threshold", "counts", "sealed", "stops"),
    [
        (None, failing(1000), True, False),
        (0.0, failing(0, 50), True, False),
        (0.0, failing(1, 50), True, True),
        (0.25, failing(5), False, False),  # of twenty, at the least
        (0.25, failing(6), False, True),
        (0.25, failing(25, 75), True, False),
        (0.25, failing(26, 74), True, True),
        (0.5, failing(3, 1), True, True),  # there are no more than four
        (1.0, failing(1000), True, False),
        (0.25, {UploadState.QUARANTINED: 6}, False, True),
        (0.25, {UploadState.REJECTED: 60, UploadState.CANCELLED: 60}, False, False),
    ],
)
def test_a_batch_stops_when_more_than_its_share_failed(
    threshold: float | None, counts: Counts, sealed: bool, stops: bool
) -> None:
    history = (SEALED,) if sealed else ()
    batch = given_batch(started(failure_threshold=threshold), *history)

    events = batch.pause_if_failing(counts, at=NOON, by="orchestrator")

    assert [type(event) for event in events] == [BatchPaused] * stops


def test_resuming_a_batch_forgives_the_failures_counted_before() -> None:
    counted = given_batch(started(failure_threshold=0.25)).record_progress(
        failing(30, 10), bytes_received=1, bytes_total=1, through=1, at=NOON, by="orchestrator"
    )
    paused = BatchPaused(at=NOON, by="orchestrator", reason="too many")
    resumed = given_batch(
        started(failure_threshold=0.25), *counted, paused, BatchResumed(at=NOON, by=ALICE)
    )

    assert resumed.pause_if_failing(failing(35, 10), at=NOON, by="orchestrator") == ()
    assert resumed.pause_if_failing(failing(36, 10), at=NOON, by="orchestrator")


def test_a_retry_of_a_batch_that_is_over_opens_it_again() -> None:
    counts: Counts = {UploadState.FAILED: 1}
    sealed = given_batch(started(), SEALED)
    progress = sealed.record_progress(
        counts, bytes_received=0, bytes_total=0, through=1, at=NOON, by="orchestrator"
    )
    done = given_batch(
        started(), SEALED, *progress, *sealed.complete(counts, at=NOON, by="orchestrator")
    )

    events = done.request_retry(at=NOON, by=ALICE)

    assert [type(event) for event in events] == [BatchReopened, BatchRetryRequested]
    assert given_batch(started()).request_retry(at=NOON, by=ALICE) == events[1:]


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ((CANCELLED,), "is cancelling"),
        (
            (
                CANCELLED,
                BatchCompleted(
                    at=NOON, by="orchestrator", outcome=Outcome.CANCELLED, counts={}, duration=1
                ),
            ),
            "was cancelled",
        ),
        (
            (
                SEALED,
                BatchCompleted(
                    at=NOON, by="orchestrator", outcome=Outcome.SUCCEEDED, counts={}, duration=1
                ),
            ),
            "none of its uploads failed",
        ),
    ],
)
def test_a_retry_of_nothing_is_refused(history: tuple[BatchEvent, ...], why: str) -> None:
    with pytest.raises(InvalidState, match=why):
        given_batch(started(), *history).request_retry(at=NOON, by=ALICE)


def test_a_priority_is_changed_once() -> None:
    batch = given_batch(started(priority=1))

    (event,) = batch.prioritize(3, at=NOON, by=ALICE)

    assert batch.evolve(event).priority == 3
    assert batch.prioritize(1, at=NOON, by=ALICE) == ()


@pytest.mark.parametrize(
    "history",
    [(), (SEALED,), (CANCELLED,), (SEALED, COMPLETED)],
    ids=["open", "sealed", "cancelling", "completed"],
)
def test_a_batch_is_renamed_in_every_state(history: tuple[BatchEvent, ...]) -> None:
    batch = given_batch(started(label="summer"), *history)

    (event,) = batch.rename("winter", at=later(1), by=ALICE)

    assert event == BatchRenamed(at=later(1), by=ALICE, label="winter")
    renamed = batch.evolve(event)
    assert (renamed.label, renamed.state) == ("winter", batch.state)


def test_the_current_label_is_not_recorded_again() -> None:
    batch = given_batch(started(label="summer"), BatchRenamed(at=NOON, by=ALICE, label="winter"))

    assert batch.rename("winter", at=NOON, by=ALICE) == ()
    assert batch.rename("summer", at=NOON, by=ALICE) != ()


@pytest.mark.parametrize("label", ["x" * (MAX_LABEL + 1), "two\nlines"])
def test_a_batch_is_renamed_by_the_rules_of_its_start(label: str) -> None:
    with pytest.raises(ValidationFailed) as refused:
        given_batch(started()).rename(label, at=NOON, by=ALICE)

    assert refused.value.faults == (
        FieldError("label", f"must be at most {MAX_LABEL} printable characters"),
    )


def test_an_erased_batch_is_not_renamed() -> None:
    erased = given_batch(started(), SEALED, COMPLETED, BatchErased(at=NOON, by=ALICE))

    for label in ("", "winter"):
        with pytest.raises(InvalidState, match="erased"):
            erased.rename(label, at=NOON, by=ALICE)


CALLED_OFF = BatchCompleted(
    at=NOON, by="orchestrator", outcome=Outcome.CANCELLED, counts={}, duration=1
)


def test_a_cancelled_batch_that_is_reopened_gets_the_outcome_of_its_uploads() -> None:
    reopened = given_batch(started(), CANCELLED, CALLED_OFF).reopen_for_retry(at=NOON, by=ALICE)

    batch = given_batch(started(), CANCELLED, CALLED_OFF, *reopened)
    (completed,) = batch.complete({UploadState.COMPLETED: 1}, at=NOON, by="orchestrator")

    assert isinstance(completed, BatchCompleted)
    assert completed.outcome is Outcome.SUCCEEDED


def test_a_release_reopens_a_completed_batch_and_leaves_a_cancelled_one() -> None:
    assert given_batch(started(), SEALED, COMPLETED).reopen_for_release(at=NOON, by=ALICE)
    assert given_batch(started(), CANCELLED, CALLED_OFF).reopen_for_release(at=NOON, by=ALICE) == ()


def test_a_paused_batch_that_is_cancelled_is_paused_no_more() -> None:
    batch = given_batch(started(), BatchPaused(at=NOON, by=ALICE), CANCELLED)

    assert (batch.state, batch.paused) == (BatchState.CANCELLING, False)


def test_a_batch_is_erased_once_and_not_before_it_has_completed() -> None:
    erased = BatchErased(at=NOON, by=ALICE)

    for history in ((), (SEALED,), (CANCELLED,)):
        with pytest.raises(InvalidState):
            given_batch(started(), *history).erase(at=NOON, by=ALICE)
    assert given_batch(started(), SEALED, COMPLETED).erase(at=NOON, by=ALICE) == (erased,)
    assert given_batch(started(), SEALED, COMPLETED, erased).erase(at=NOON, by=ALICE) == ()


def test_a_size_that_was_declared_later_is_counted() -> None:
    def counted(batch: Batch, total: int) -> tuple[BatchEvent, ...]:
        return batch.record_progress(
            {UploadState.TRANSFERRING: 1},
            bytes_received=20,
            bytes_total=total,
            through=7,
            at=NOON,
            by="orchestrator",
        )

    first = counted(given_batch(started()), 20)

    assert counted(given_batch(started(), *first), 20) == ()
    assert [type(event) for event in counted(given_batch(started(), *first), 90)] == [
        BatchProgressed
    ]
