from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest

from application.append import RecordedEvent
from application.orchestrator.deciding import abandon, call_off, release, settle
from application.orchestrator.following import Changes, OutOfStep, follow
from application.orchestrator.members import Followed, Member, Tally
from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchEvent,
    BatchExpired,
    BatchPaused,
    BatchProgressed,
    BatchReopened,
    BatchResumed,
    BatchSealed,
)
from domain.batch.state import BatchState, Counts, Outcome
from domain.event import Event
from domain.upload.events import (
    AttemptAbandoned,
    AttemptFailed,
    RetryRequested,
    UploadCancelled,
    UploadCompleted,
    UploadEvent,
    UploadExpired,
    UploadFailed,
    UploadQueued,
    UploadRejected,
)
from domain.upload.state import UploadState
from tests.stories import (
    ALICE,
    BATCH,
    FILE,
    NOON,
    WORKER,
    attempt,
    later,
    queued,
    received,
    registered,
    started,
)

SEALED = BatchSealed(at=NOON, by=ALICE)


def history(**streams: Sequence[Event]) -> list[RecordedEvent]:
    """Events of the batch, then of uploads, each stream from its first version on."""
    ids = {"batch": BATCH, "file": FILE}
    recorded: list[RecordedEvent] = []
    for name, events in streams.items():
        stream = ids.get(name) or UUID(int=len(name))
        for version, event in enumerate(events, 1):
            recorded.append(RecordedEvent(stream, version, len(recorded) + 1, event))  # type: ignore[arg-type]
    return recorded


def known(**streams: Sequence[Event]) -> Changes:
    return follow(history(**streams), {}, {})


def member(*events: UploadEvent) -> Member:
    return known(batch=[started()], file=[registered(), *events]).members[FILE]


def batch(*events: BatchEvent) -> Followed:
    return known(batch=[started(), *events]).batches[BATCH]


def failed(retry: bool) -> AttemptFailed:
    return AttemptFailed(
        at=NOON,
        by=WORKER,
        number=1,
        step="checksum",
        error_type="OSError",
        message="reset",
        permanent=False,
        duration=1.0,
        retry_at=later(5) if retry else None,
    )


def decided(
    subject: Followed, counts: Counts, *, due: bool = True, received: int = 0, total: int = 0
) -> tuple[BatchEvent, ...]:
    return settle(subject, Tally(counts, received, total), through=9, at=later(60), due=due)


class TestFollowing:
    def test_an_event_it_has_seen_changes_nothing(self) -> None:
        events = history(batch=[started()], file=[registered(), received(), queued()])
        first = follow(events, {}, {})

        again = follow(events, first.members, first.batches)

        assert again == Changes()

    def test_an_event_it_has_missed_stops_it(self) -> None:
        first = known(batch=[started()], file=[registered()])
        skipped = RecordedEvent(FILE, 3, 9, queued())

        with pytest.raises(OutOfStep, match="version 3 after 1"):
            follow([skipped], first.members, first.batches)

    def test_every_event_of_an_upload_makes_its_batch_count_again(self) -> None:
        first = known(batch=[started()], file=[registered()])
        clean = {BATCH: first.batches[BATCH].cleaned()}

        changes = follow([RecordedEvent(FILE, 2, 9, received())], first.members, clean)

        assert changes.batches[BATCH].dirty
        assert changes.members[FILE].state is UploadState.RECEIVED

    def test_a_failure_with_a_next_attempt_is_to_be_tried_again(self) -> None:
        changes = known(
            batch=[started()],
            file=[registered(), received(), queued(), attempt(), failed(retry=True)],
        )

        assert changes.retries == {FILE}
        assert changes.members[FILE].retry_at == later(5)

    def test_a_retry_that_has_begun_by_now_is_not_begun_twice(self) -> None:
        changes = known(
            batch=[started()],
            file=[registered(), received(), queued(), attempt(), failed(retry=True), attempt(2)],
        )

        assert changes.retries == set()

    def test_the_last_failure_is_not_tried_again(self) -> None:
        ending = UploadFailed(at=NOON, by=WORKER, step="checksum", message="reset")

        changes = known(
            batch=[started()],
            file=[registered(), received(), queued(), attempt(), failed(retry=False), ending],
        )

        assert changes.retries == set()
        assert changes.members[FILE].state is UploadState.FAILED

    def test_a_rejected_file_is_counted_as_one(self) -> None:
        rejected = UploadRejected(
            at=NOON, by=ALICE, batch=BATCH, owner="acme", path="x", code="c", message="m"
        )

        changes = known(batch=[started()], file=[rejected])

        assert changes.members[FILE].state is UploadState.REJECTED

    def test_work_that_was_resumed_is_told(self) -> None:
        changes = known(
            batch=[started(), BatchPaused(at=NOON, by=ALICE), BatchResumed(at=NOON, by=ALICE)]
        )

        assert changes.resumed
        assert not changes.batches[BATCH].paused


class TestSettling:
    def test_an_open_batch_never_completes(self) -> None:
        events = decided(batch(), {UploadState.COMPLETED: 2})

        assert [type(event) for event in events] == [BatchProgressed]

    def test_a_batch_never_completes_while_an_upload_is_unfinished(self) -> None:
        counts = {UploadState.COMPLETED: 2, UploadState.RETRY_SCHEDULED: 1}

        events = decided(batch(SEALED), counts)

        assert [type(event) for event in events] == [BatchProgressed]

    def test_an_empty_sealed_batch_completes(self) -> None:
        events = decided(batch(SEALED), {}, due=False)

        assert events == (
            BatchCompleted(
                at=later(60), by="orchestrator", outcome=Outcome.SUCCEEDED, counts={}, duration=60.0
            ),
        )

    @pytest.mark.parametrize(
        ("counts", "outcome"),
        [
            ({UploadState.COMPLETED: 2}, Outcome.SUCCEEDED),
            ({UploadState.COMPLETED: 1, UploadState.FAILED: 1}, Outcome.COMPLETED_WITH_FAILURES),
            ({UploadState.COMPLETED: 1, UploadState.REJECTED: 1}, Outcome.COMPLETED_WITH_FAILURES),
            ({UploadState.FAILED: 2}, Outcome.FAILED),
        ],
    )
    def test_completed_is_never_said_of_a_batch_with_failures(
        self, counts: Counts, outcome: Outcome
    ) -> None:
        progressed, completed = decided(batch(SEALED), counts, due=False)

        assert isinstance(progressed, BatchProgressed)
        assert isinstance(completed, BatchCompleted)
        assert completed.outcome is outcome
        assert completed.counts == progressed.counts == counts
        assert progressed.percent == 100.0

    def test_a_batch_that_was_called_off_ends_as_cancelled(self) -> None:
        called_off = batch(BatchCancelled(at=NOON, by=ALICE, reason="wrong folder"))

        *_, completed = decided(called_off, {UploadState.COMPLETED: 1, UploadState.CANCELLED: 1})

        assert isinstance(completed, BatchCompleted)
        assert completed.outcome is Outcome.CANCELLED

    def test_the_same_count_is_not_recorded_twice(self) -> None:
        counts = {UploadState.PROCESSING: 1}
        (progressed,) = decided(batch(SEALED), counts)

        assert decided(batch(SEALED, progressed), counts) == ()

    def test_a_count_waits_until_it_is_due(self) -> None:
        assert decided(batch(SEALED), {UploadState.PROCESSING: 1}, due=False) == ()

    def test_a_resumed_batch_does_not_count_a_file_twice(self) -> None:
        events = [started(), SEALED]
        file = [registered(), received(), queued(), attempt(), failed(retry=True), attempt(2)]
        changes = known(batch=events, file=file)

        assert len(changes.members) == 1
        assert changes.members[FILE].received == 100

    def test_a_completed_batch_with_an_unfinished_upload_is_reopened(self) -> None:
        (*_, completed) = decided(batch(SEALED), {UploadState.FAILED: 1})
        over = batch(SEALED, completed)

        (reopened, *rest) = decided(over, {UploadState.RECEIVED: 1}, due=False)

        assert isinstance(reopened, BatchReopened)
        assert rest == []
        assert over.evolve(reopened).state is BatchState.SEALED

    def test_a_completed_batch_completes_once(self) -> None:
        progressed, completed = decided(batch(SEALED), {UploadState.COMPLETED: 1})

        assert decided(batch(SEALED, progressed, completed), {UploadState.COMPLETED: 1}) == ()

    def test_a_batch_whose_failed_uploads_are_about_to_begin_again_has_no_verdict(self) -> None:
        counts: Counts = {UploadState.FAILED: 1}

        events = settle(
            batch(SEALED), Tally(counts), through=9, at=later(1), due=True, retrying=True
        )

        assert [type(event) for event in events] == [BatchProgressed]

    def test_a_pause_because_of_failures_is_recorded_with_the_count_it_rests_on(self) -> None:
        failing = known(batch=[started(failure_threshold=0.1), SEALED]).batches[BATCH]
        counts: Counts = {UploadState.FAILED: 5, UploadState.RECEIVED: 20}

        events = decided(failing, counts, due=False)

        assert [type(event) for event in events] == [BatchProgressed, BatchPaused]
        assert decided(failing, {UploadState.FAILED: 25})[-1] != events[-1]  # nothing to stop

    def test_a_release_from_quarantine_leads_to_another_verdict(self) -> None:
        first = decided(batch(SEALED), {UploadState.QUARANTINED: 1})

        events = decided(batch(SEALED, *first), {UploadState.COMPLETED: 1})

        kinds = [type(event) for event in events]
        assert kinds == [BatchReopened, BatchProgressed, BatchCompleted]
        assert decided(batch(SEALED, *first, *events), {UploadState.COMPLETED: 1}) == ()


class TestMovingUploads:
    def test_a_received_upload_is_released(self) -> None:
        assert release(member(received()), at=later(1)) == (
            UploadQueued(at=later(1), by="orchestrator"),
        )

    def test_calling_off_abandons_the_attempt_first(self) -> None:
        running = member(received(), queued(), attempt())

        events = call_off(running, Outcome.CANCELLED, "wrong folder", at=later(1))

        assert [type(event) for event in events] == [AttemptAbandoned, UploadCancelled]

    def test_what_never_arrived_expires_with_its_batch(self) -> None:
        expired = batch(BatchExpired(at=NOON, by="orchestrator"))

        events = call_off(member(), expired.ending, expired.reason, at=later(1))

        assert [type(event) for event in events] == [UploadExpired]

    def test_a_dead_workers_attempt_is_abandoned_by_its_number(self) -> None:
        (abandoned,) = abandon(member(received(), queued(), attempt()), max_losses=2, at=later(1))

        assert isinstance(abandoned, AttemptAbandoned)
        assert (abandoned.number, abandoned.worker) == (1, WORKER)

    def test_a_retry_on_request_makes_a_failed_upload_wait_for_release(self) -> None:
        ending = UploadFailed(at=NOON, by=WORKER, step="checksum", message="reset")
        asked = RetryRequested(at=NOON, by=ALICE)

        again = member(received(), queued(), attempt(), failed(retry=False), ending, asked)

        assert again.state is UploadState.RECEIVED
        assert again.job is None

    def test_what_has_ended_is_carried_by_no_job(self) -> None:
        carried = member(received(), queued(), attempt())
        done = carried.evolve(UploadCompleted(at=NOON, by=WORKER))

        assert done.job is None
