"""The orchestrator's plan of a round: values in, values out, no database."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from msgspec.structs import replace

from application.orchestrator import (
    MAX_JOB_BYTES,
    BatchToCount,
    RoundInputs,
    RoundPlan,
    UploadToCancel,
    abandon_attempt,
    cancel_or_expire,
    pack_jobs,
    plan_round,
    progress_and_completion,
    retry_jobs,
)
from application.tracked_batches import BatchCounts, TrackedBatch, TrackedUpload
from domain.batch.events import (
    BatchCancelled,
    BatchCompleted,
    BatchEvent,
    BatchExpired,
    BatchPaused,
    BatchProgressed,
    BatchReopened,
    BatchSealed,
)
from domain.batch.state import BatchState, Counts, Outcome
from domain.event import Event
from domain.upload.aggregate import Upload
from domain.upload.events import (
    AttemptAbandoned,
    RetryRequested,
    UploadCancelled,
    UploadEvent,
    UploadExpired,
    UploadFailed,
    UploadQueued,
)
from domain.upload.state import UploadState
from tests.builders import (
    ALICE,
    BATCH,
    FILE,
    NOON,
    WORKER,
    attempt,
    given,
    given_batch,
    later,
    queued,
    received,
    registered,
    started,
)

SEALED = BatchSealed(at=NOON, by=ALICE)
ONE, TWO = UUID(int=1), UUID(int=2)
FIRST, SECOND, THIRD = (UUID(int=number) for number in (11, 12, 13))


def upload(*events: UploadEvent, id: UUID = FILE) -> Upload:
    return given(registered(), *events, id=id)


def tracked(*events: UploadEvent, id: UUID = FILE, **more: Any) -> TrackedUpload:
    return TrackedUpload(upload=upload(*events, id=id), **more)


def tracked_batch(*events: BatchEvent) -> TrackedBatch:
    return TrackedBatch(batch=given_batch(started(), *events), active_at=NOON)


def decided(
    events: tuple[BatchEvent, ...],
    counts: Counts,
    *,
    due: bool = True,
    retrying: bool = False,
    **more: Any,
) -> tuple[BatchEvent, ...]:
    """Return the events that follow for a batch of this history with uploads of these states."""
    return progress_and_completion(
        given_batch(started(**more), *events),
        BatchCounts(counts),
        through=9,
        at=later(60),
        is_due=due,
        is_retrying=retrying,
    )


def types(events: tuple[Event, ...]) -> list[type[Event]]:
    return [type(event) for event in events]


class TestProgressAndCompletion:
    def test_an_open_batch_never_completes(self) -> None:
        assert types(decided((), {UploadState.COMPLETED: 2})) == [BatchProgressed]

    def test_a_batch_never_completes_while_an_upload_is_unfinished(self) -> None:
        counts = {UploadState.COMPLETED: 2, UploadState.RETRY_SCHEDULED: 1}

        assert types(decided((SEALED,), counts)) == [BatchProgressed]

    def test_an_empty_sealed_batch_completes(self) -> None:
        assert decided((SEALED,), {}, due=False) == (
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
    def test_the_outcome_of_a_batch_follows_from_the_states_of_its_uploads(
        self, counts: Counts, outcome: Outcome
    ) -> None:
        progressed, completed = decided((SEALED,), counts, due=False)

        assert isinstance(progressed, BatchProgressed)
        assert isinstance(completed, BatchCompleted)
        assert completed.outcome is outcome
        assert completed.counts == progressed.counts == counts
        assert progressed.percent == 100.0

    def test_a_cancelled_batch_ends_as_cancelled(self) -> None:
        cancelled = BatchCancelled(at=NOON, by=ALICE, reason="wrong folder")

        *_, completed = decided((cancelled,), {UploadState.COMPLETED: 1, UploadState.CANCELLED: 1})

        assert isinstance(completed, BatchCompleted)
        assert completed.outcome is Outcome.CANCELLED

    def test_a_count_is_not_recorded_twice(self) -> None:
        counts = {UploadState.PROCESSING: 1}
        (progressed,) = decided((SEALED,), counts)

        assert decided((SEALED, progressed), counts) == ()

    def test_a_count_waits_until_it_is_due(self) -> None:
        assert decided((SEALED,), {UploadState.PROCESSING: 1}, due=False) == ()

    def test_a_completed_batch_with_an_unfinished_upload_is_reopened(self) -> None:
        (*_, completed) = decided((SEALED,), {UploadState.FAILED: 1})

        (reopened, *rest) = decided((SEALED, completed), {UploadState.RECEIVED: 1}, due=False)

        assert isinstance(reopened, BatchReopened)
        assert rest == []
        over = given_batch(started(), SEALED, completed)
        assert over.evolve(reopened).state is BatchState.SEALED

    def test_a_completed_batch_completes_once(self) -> None:
        progressed, completed = decided((SEALED,), {UploadState.COMPLETED: 1})

        assert decided((SEALED, progressed, completed), {UploadState.COMPLETED: 1}) == ()

    def test_a_batch_with_failed_uploads_to_retry_does_not_complete(self) -> None:
        assert types(decided((SEALED,), {UploadState.FAILED: 1}, retrying=True)) == [
            BatchProgressed
        ]

    def test_a_pause_because_of_failures_is_recorded_with_the_count_it_follows_from(self) -> None:
        counts: Counts = {UploadState.FAILED: 5, UploadState.RECEIVED: 20}

        events = decided((SEALED,), counts, due=False, failure_threshold=0.1)

        assert types(events) == [BatchProgressed, BatchPaused]

    def test_a_batch_with_nothing_left_to_pause_is_not_paused(self) -> None:
        events = decided((SEALED,), {UploadState.FAILED: 25}, due=False, failure_threshold=0.1)

        assert types(events) == [BatchProgressed, BatchCompleted]

    def test_a_release_from_quarantine_leads_to_another_completion(self) -> None:
        first = decided((SEALED,), {UploadState.QUARANTINED: 1})

        events = decided((SEALED, *first), {UploadState.COMPLETED: 1})

        assert types(events) == [BatchReopened, BatchProgressed, BatchCompleted]
        assert decided((SEALED, *first, *events), {UploadState.COMPLETED: 1}) == ()

    def test_a_release_in_a_cancelled_batch_leaves_its_outcome(self) -> None:
        cancelled = BatchCancelled(at=NOON, by=ALICE, reason="wrong folder")
        first = decided((cancelled,), {UploadState.QUARANTINED: 1})

        events = decided((cancelled, *first), {UploadState.COMPLETED: 1})

        assert BatchReopened not in types(events)
        assert given_batch(started(), cancelled, *first, *events).outcome is Outcome.CANCELLED


class TestDecisionsOnUploads:
    def test_a_cancelled_upload_abandons_its_attempt_first(self) -> None:
        running = upload(received(), queued(), attempt())

        events = cancel_or_expire(running, Outcome.CANCELLED, "wrong folder", at=later(1))

        assert types(events) == [AttemptAbandoned, UploadCancelled]

    def test_a_file_that_never_arrived_is_cancelled_with_its_batch(self) -> None:
        events = cancel_or_expire(upload(), Outcome.CANCELLED, "wrong folder", at=NOON)

        assert types(events) == [UploadCancelled]

    def test_a_file_that_never_arrived_expires_with_its_batch(self) -> None:
        events = cancel_or_expire(upload(), Outcome.EXPIRED, "the batch expired", at=later(1))

        assert types(events) == [UploadExpired]

    def test_the_attempt_of_a_dead_worker_is_abandoned_by_its_number(self) -> None:
        running = upload(received(), queued(), attempt())

        (abandoned,) = abandon_attempt(running, max_losses=2, at=later(1))

        assert isinstance(abandoned, AttemptAbandoned)
        assert (abandoned.number, abandoned.worker) == (1, WORKER)


class TestPlan:
    def test_a_received_upload_is_enqueued(self) -> None:
        plan = plan_round(RoundInputs(through=1, ready=[tracked(received())]), later(1))

        (decision,) = plan.decisions
        assert decision.events == (UploadQueued(at=later(1), by="orchestrator"),)
        assert enqueued(plan) == [FILE]

    def test_an_upload_whose_append_was_refused_gets_no_job(self) -> None:
        ready = [tracked(received(), id=id) for id in (FIRST, SECOND)]
        plan = plan_round(RoundInputs(through=1, ready=ready, max_job_uploads=9), later(1))

        consequences = plan.consequences([False, True])

        assert [job.uploads for job in consequences.jobs] == [(SECOND,)]
        assert [row.upload.id for row in consequences.uploads] == [SECOND]
        assert consequences.dirty == {BATCH}

    def test_a_refused_decision_alone_has_no_consequence(self) -> None:
        plan = plan_round(RoundInputs(through=1, ready=[tracked(received())]), later(1))

        consequences = plan.consequences([False])

        assert not any((consequences.jobs, consequences.uploads, consequences.batches))
        assert not consequences.dirty

    def test_the_row_of_an_enqueued_upload_names_its_job(self) -> None:
        plan = plan_round(RoundInputs(through=1, ready=[tracked(received())]), later(1))

        (row,) = plan.consequences([True]).uploads_with_jobs({FILE: 77})

        assert (row.job, row.upload.state) == (77, UploadState.QUEUED)

    def test_the_row_of_an_upload_without_a_new_job_keeps_the_one_it_has(self) -> None:
        retried = tracked(received(), queued(), attempt(), job=55)
        plan = plan_round(RoundInputs(through=1, retries=[retried]), later(1))

        (row,) = plan.consequences([]).uploads_with_jobs({})

        assert row.job == 55

    def test_an_upload_of_a_cancelled_batch_is_cancelled(self) -> None:
        waiting = tracked(received(), queued())
        cancelled = UploadToCancel(waiting, Outcome.CANCELLED, "wrong folder")

        plan = plan_round(RoundInputs(through=1, to_cancel=[cancelled]), later(1))

        assert types(plan.decisions[0].events) == [UploadCancelled]
        assert enqueued(plan) == []

    def test_an_upload_that_is_cancelled_is_not_retried(self) -> None:
        failing = scheduled()
        cancelled = UploadToCancel(failing, Outcome.CANCELLED, "wrong folder")

        plan = plan_round(
            RoundInputs(through=1, to_cancel=[cancelled], retries=[failing]), later(1)
        )

        assert plan.consequences([False]).jobs == ()

    def test_a_retry_is_scheduled_for_the_time_of_its_policy(self) -> None:
        plan = plan_round(RoundInputs(through=1, retries=[scheduled()]), later(1))

        (job,) = plan.consequences([]).jobs
        assert (job.uploads, job.at) == ((FILE,), later(3))

    def test_failed_uploads_of_a_retried_batch_are_retried_and_the_batch_does_not_complete(
        self,
    ) -> None:
        failed = tracked(
            received(),
            queued(),
            attempt(),
            UploadFailed(at=NOON, by=WORKER, step="checksum", message="reset"),
        )
        batch = BatchToCount(
            tracked_batch(SEALED), BatchCounts({UploadState.FAILED: 1}), False, False
        )

        plan = plan_round(
            RoundInputs(through=1, to_retry={BATCH: [failed]}, to_count=[batch]), later(1)
        )

        (decision,) = plan.decisions
        assert types(decision.events) == [RetryRequested]
        assert plan.unchanged == ()  # the batch is counted again

    def test_a_count_of_a_batch_that_is_retried_leaves_it_to_be_counted_again(self) -> None:
        batch = BatchToCount(
            tracked_batch(SEALED), BatchCounts({UploadState.CANCELLED: 1}), True, False
        )

        plan = plan_round(RoundInputs(through=1, to_retry={BATCH: []}, to_count=[batch]), later(1))

        (decision,) = plan.decisions
        assert types(decision.events) == [BatchProgressed]
        (counted,) = plan.consequences([True]).batches
        assert counted.dirty

    def test_a_batch_that_expires_is_not_counted_in_the_same_round(self) -> None:
        batch = tracked_batch()
        to_count = BatchToCount(batch, BatchCounts({UploadState.REGISTERED: 1}), True, False)

        plan = plan_round(RoundInputs(through=1, idle=[batch], to_count=[to_count]), later(1))

        (decision,) = plan.decisions
        assert types(decision.events) == [BatchExpired]
        (row,) = plan.consequences([True]).batches
        assert row.dirty

    def test_a_counted_batch_is_clean(self) -> None:
        counts = BatchCounts({UploadState.PROCESSING: 1})
        to_count = BatchToCount(tracked_batch(SEALED), counts, True, False)

        plan = plan_round(RoundInputs(through=1, to_count=[to_count]), later(1))

        (row,) = plan.consequences([True]).batches
        assert not row.dirty
        assert row.batch.progress is not None
        assert row.batch.progress.counts == counts.by_state

    def test_a_batch_whose_count_is_recorded_already_is_clean(self) -> None:
        to_count = BatchToCount(
            tracked_batch(SEALED), BatchCounts({UploadState.PROCESSING: 1}), False, False
        )

        plan = plan_round(RoundInputs(through=1, to_count=[to_count]), later(1))

        assert plan.decisions == ()
        (row,) = plan.consequences([]).batches
        assert not row.dirty


class TestLostUploads:
    def test_an_upload_without_a_job_is_not_lost_at_the_first_check(self) -> None:
        plan = plan_round(RoundInputs(through=1, lost=[tracked(received(), queued())]), later(1))

        assert plan.decisions == plan.stranded == ()
        assert plan.suspects == {FILE: 3}

    def test_an_upload_that_two_checks_find_at_one_version_is_lost(self) -> None:
        standing = tracked(received(), queued(), id=FIRST)
        moved = tracked(received(), queued(), id=SECOND)
        suspects = {FIRST: 3, SECOND: 2}

        plan = plan_round(
            RoundInputs(through=1, lost=[standing, moved], suspects=suspects), later(1)
        )

        assert plan.stranded == (standing,)
        assert enqueued(plan) == [FIRST]

    def test_only_the_last_check_counts(self) -> None:
        suspects = plan_round(RoundInputs(through=1, lost=[], suspects={FILE: 3}), NOON).suspects

        plan = plan_round(
            RoundInputs(through=1, lost=[tracked(received(), queued())], suspects=suspects), NOON
        )

        assert plan.stranded == ()

    def test_a_round_without_a_check_keeps_suspected_losses(self) -> None:
        assert plan_round(RoundInputs(through=1, suspects={FILE: 3}), NOON).suspects == {FILE: 3}

    def test_one_check_is_enough_after_a_resumed_batch(self) -> None:
        waiting = tracked(received(), queued())

        plan = plan_round(
            RoundInputs(through=1, lost=[waiting], is_resumed=True, suspects={SECOND: 1}), NOON
        )

        assert plan.stranded == (waiting,)
        assert plan.suspects == {SECOND: 1}

    def test_a_lost_attempt_is_abandoned_and_its_upload_gets_a_job_of_its_own(self) -> None:
        running = tracked(received(), queued(), attempt(), id=FIRST)
        ready = tracked(received(), id=SECOND)

        plan = plan_round(
            RoundInputs(
                through=1,
                lost=[running],
                suspects={FIRST: running.upload.version},
                ready=[ready],
                max_losses=2,
                max_job_uploads=9,
            ),
            later(1),
        )

        jobs = plan.consequences([True, True]).jobs
        assert [job.uploads for job in jobs] == [(FIRST,), (SECOND,)]

    def test_an_upload_with_its_last_loss_fails_and_gets_no_job(self) -> None:
        running = tracked(received(), queued(), attempt())

        plan = plan_round(
            RoundInputs(through=1, lost=[running], is_resumed=True, max_losses=1), later(1)
        )

        assert types(plan.decisions[0].events) == [AttemptAbandoned, UploadFailed]
        assert enqueued(plan) == []


def scheduled() -> TrackedUpload:
    running = upload(received(), queued(), attempt())
    waiting = replace(running, state=UploadState.RETRY_SCHEDULED, worker=None)
    return TrackedUpload(upload=waiting, retry_at=later(3))


def enqueued(plan: RoundPlan) -> list[UUID]:
    """Return the uploads that get a job if every decision is accepted."""
    jobs = plan.consequences([True] * len(plan.decisions)).jobs
    return [upload for job in jobs for upload in job.uploads]


class TestJobs:
    def test_uploads_of_one_batch_share_a_job(self) -> None:
        assert sizes([ready(n) for n in range(100)]) == [20] * 5

    def test_a_few_uploads_are_spread_over_the_workers(self) -> None:
        assert sizes([ready(n) for n in range(12)], workers=3) == [2] * 6

    def test_a_single_worker_gets_them_in_one_job(self) -> None:
        assert sizes([ready(n) for n in range(12)], workers=1) == [12]

    def test_a_job_holds_uploads_of_one_batch_only(self) -> None:
        uploads = [ready(n, batch) for n in range(10) for batch in (ONE, TWO)]

        jobs = pack_jobs(uploads, workers=1, max_uploads=20)

        assert [(job.batch, len(job.uploads)) for job in jobs] == [(ONE, 10), (TWO, 10)]

    def test_a_big_batch_does_not_go_before_all_the_others(self) -> None:
        uploads = [ready(n, batch) for n in range(40) for batch in (ONE, TWO)]

        jobs = pack_jobs(uploads, workers=1, max_uploads=10)

        assert [job.batch for job in jobs] == [ONE, TWO] * 4

    def test_large_files_are_sent_alone(self) -> None:
        assert sizes([ready(n, size=MAX_JOB_BYTES) for n in range(12)]) == [1] * 12

    def test_an_upload_that_was_in_progress_when_a_worker_was_lost_travels_alone(self) -> None:
        suspect = ready(3)
        suspect = replace(suspect, upload=replace(suspect.upload, losses=1))

        jobs = pack_jobs([ready(1), ready(2), suspect, ready(4)], workers=1, max_uploads=20)

        assert [len(job.uploads) for job in jobs] == [3, 1]
        assert jobs[1].uploads == (suspect.upload.id,)

    def test_each_retry_is_a_job_of_its_own(self) -> None:
        (job,) = retry_jobs([scheduled()])

        assert (job.uploads, job.at) == ((FILE,), later(3))


def ready(number: int, batch: UUID = ONE, size: int = 10) -> TrackedUpload:
    id = UUID(int=batch.int * 1000 + number)
    return TrackedUpload(
        upload=given(registered(size, batch=batch), received(size), queued(), id=id)
    )


def sizes(uploads: list[TrackedUpload], *, workers: int = 1, most: int = 20) -> list[int]:
    return [len(job.uploads) for job in pack_jobs(uploads, workers=workers, max_uploads=most)]
