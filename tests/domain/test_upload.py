from __future__ import annotations

from uuid import UUID

import pytest

from domain.errors import InvalidState, OutOfRange, StaleAttempt
from domain.ids import partial_upload_id_for
from domain.retry import RetryPolicy
from domain.upload.aggregate import Failure
from domain.upload.events import (
    AttemptAbandoned,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    BytesLost,
    FileProgressed,
    FileReceived,
    RetryRequested,
    SizeDeclared,
    TransferInterrupted,
    UploadCancelled,
    UploadCompleted,
    UploadErased,
    UploadExpired,
    UploadFailed,
    UploadQuarantined,
    UploadQueued,
    UploadReleased,
)
from domain.upload.state import UploadState
from tests.builders import (
    ALICE,
    NOON,
    WORKER,
    attempt,
    failure,
    given,
    later,
    processing,
    queued,
    received,
    registered,
)


def test_bytes_that_arrive_are_progress_of_the_transfer() -> None:
    upload = given(registered(size=100))

    assert upload.progress_transfer(40, at=NOON, by=ALICE) == (
        FileProgressed(at=NOON, by=ALICE, phase="transfer", done=40, total=100, percent=40.0),
    )


def test_saying_the_same_progress_twice_records_it_once() -> None:
    upload = given(
        registered(), FileProgressed(at=NOON, by=ALICE, phase="transfer", done=40, total=100)
    )

    assert upload.progress_transfer(40, at=NOON, by=ALICE) == ()


@pytest.mark.parametrize("bytes_received", [0, 39, 101])
def test_progress_never_goes_back_or_past_the_end(bytes_received: int) -> None:
    upload = given(
        registered(size=100), FileProgressed(at=NOON, by=ALICE, phase="transfer", done=40)
    )

    with pytest.raises(OutOfRange):
        upload.progress_transfer(bytes_received, at=NOON, by=ALICE)


def test_an_interrupted_transfer_keeps_what_arrived() -> None:
    upload = given(
        registered(), TransferInterrupted(at=NOON, by=ALICE, received=70, reason="client gone")
    )

    assert (upload.state, upload.received) == (UploadState.TRANSFERRING, 70)
    assert upload.receive(100, "uploads/a", at=NOON, by=ALICE) == (received(),)


def test_bytes_missing_from_the_store_are_a_reported_loss() -> None:
    upload = given(
        registered(), TransferInterrupted(at=NOON, by=ALICE, received=70, reason="client gone")
    )
    lost = BytesLost(at=NOON, by=ALICE, recorded=70, stored=30)

    assert upload.record_data_loss(30, at=NOON, by=ALICE) == (lost,)
    assert upload.evolve(lost).received == 30
    with pytest.raises(OutOfRange):
        upload.record_data_loss(70, at=NOON, by=ALICE)


def test_a_size_unknown_at_first_is_declared_by_the_last_byte() -> None:
    assert given(registered(size=None)).receive(7, "uploads/a", at=NOON, by=ALICE) == (
        SizeDeclared(at=NOON, by=ALICE, size=7),
        FileReceived(at=NOON, by=ALICE, size=7, blob="uploads/a"),
    )


def test_a_declared_size_is_not_declared_otherwise() -> None:
    with pytest.raises(InvalidState, match="already declared"):
        given(registered(size=100)).declare_size(99, at=NOON, by=ALICE)


def test_a_file_is_not_received_before_its_last_byte() -> None:
    with pytest.raises(OutOfRange):
        given(registered(size=100)).receive(99, "uploads/a", at=NOON, by=ALICE)


def test_a_queued_upload_is_claimed_by_one_attempt() -> None:
    upload = given(registered(), received(), queued())
    claim = AttemptStarted(at=NOON, by=WORKER, number=1, worker=WORKER)

    assert upload.start_attempt(WORKER, at=NOON, by=WORKER) == (claim,)
    with pytest.raises(InvalidState, match="processing"):
        upload.evolve(claim).start_attempt("worker:two", at=NOON, by="worker:two")


def test_the_real_error_is_recorded_and_the_next_attempt_is_scheduled() -> None:
    upload = processing()

    assert upload.fail_attempt(
        1, failure("connection reset"), duration=0.5, random=0.5, at=NOON, by=WORKER
    ) == (
        AttemptFailed(
            at=NOON,
            by=WORKER,
            number=1,
            step="checksum",
            error_type="OSError",
            message="connection reset",
            permanent=False,
            duration=0.5,
            retry_at=later(0.5),
        ),
    )


def test_the_last_allowed_failure_fails_the_upload_with_its_own_message() -> None:
    upload = processing(retry_policy=RetryPolicy(attempts=1))

    events = upload.fail_attempt(
        1, failure("disk on fire"), duration=0.5, random=0.5, at=NOON, by=WORKER
    )

    assert events[-1] == UploadFailed(at=NOON, by=WORKER, step="checksum", message="disk on fire")


def test_a_permanent_error_is_not_tried_again() -> None:
    failed, end = processing().fail_attempt(
        1, failure(permanent=True), duration=0.5, random=0.5, at=NOON, by=WORKER
    )

    assert isinstance(failed, AttemptFailed)
    assert failed.retry_at is None
    assert isinstance(end, UploadFailed)


def test_an_abandoned_attempt_is_not_used_up() -> None:
    upload = processing(retry_policy=RetryPolicy(attempts=1))
    (abandoned,) = upload.abandon_attempt(1, "worker died", at=NOON, by="orchestrator")

    again = upload.evolve(abandoned)

    assert abandoned == AttemptAbandoned(
        at=NOON, by="orchestrator", number=1, worker=WORKER, reason="worker died"
    )
    assert (again.state, again.failures) == (UploadState.QUEUED, 0)
    assert again.start_attempt(WORKER, at=NOON, by=WORKER) == (attempt(2),)


def test_only_workers_that_are_lost_are_counted_as_losses() -> None:
    upload = processing()
    (stopped,) = upload.abandon_attempt(1, "worker stopping", at=NOON, by=f"worker:{WORKER}")
    (lost,) = upload.lose_worker(1, "gone", max_losses=2, at=NOON, by="orchestrator")

    assert upload.evolve(stopped).losses == 0
    assert upload.evolve(lost).losses == 1


def test_the_last_worker_that_may_be_lost_fails_the_upload_and_a_retry_counts_anew() -> None:
    upload = processing()
    (first,) = upload.lose_worker(1, "gone", max_losses=2, at=NOON, by="orchestrator")
    upload = upload.evolve(first).evolve(attempt(2))

    events = upload.lose_worker(2, "gone", max_losses=2, at=NOON, by="orchestrator")

    assert events[1] == UploadFailed(
        at=NOON,
        by="orchestrator",
        step="worker",
        message=f"2 workers were lost while processing this file; the last was {WORKER}",
    )
    failed = upload.evolve(events[0]).evolve(events[1])
    assert (failed.state, failed.losses) == (UploadState.FAILED, 2)
    (again,) = failed.request_retry(at=NOON, by="key:alice")
    assert failed.evolve(again).losses == 0


def test_messages_and_types_of_errors_are_cut() -> None:
    long = Failure(step="step", error_type="T" * 9_000, message="m" * 9_000, permanent=True)

    failed, end = processing().fail_attempt(1, long, duration=0.5, random=0.5, at=NOON, by=WORKER)
    _, held = processing().quarantine(1, long, duration=0.5, at=NOON, by=WORKER)

    assert isinstance(failed, AttemptFailed)
    assert isinstance(end, UploadFailed)
    assert isinstance(held, UploadQuarantined)
    assert (failed.message, failed.error_type) == ("m" * 2_000, "T" * 200)
    assert end.message == held.reason == "m" * 2_000


def test_a_zombie_is_refused_once_its_attempt_was_abandoned() -> None:
    upload = processing()
    (abandoned,) = upload.abandon_attempt(1, "worker died", at=NOON, by="orchestrator")

    with pytest.raises(StaleAttempt):
        upload.evolve(abandoned).succeed_attempt(
            1, results={}, artifacts={}, duration=1.0, at=NOON, by=WORKER
        )


def test_an_older_attempt_does_not_speak_for_a_newer_one() -> None:
    upload = processing()
    (abandoned,) = upload.abandon_attempt(1, "worker died", at=NOON, by="orchestrator")

    with pytest.raises(StaleAttempt):
        upload.evolve(abandoned).evolve(attempt(2)).progress_step(
            1, "checksum", 1, 2, at=NOON, by=WORKER
        )


def test_success_completes_the_upload() -> None:
    results = {"checksum": {"sha256": "ab"}}

    assert processing().succeed_attempt(
        1, results=results, artifacts={}, duration=1.0, at=NOON, by=WORKER
    ) == (
        AttemptSucceeded(at=NOON, by=WORKER, number=1, results=results, duration=1.0),
        UploadCompleted(at=NOON, by=WORKER),
    )


def test_a_dangerous_file_is_held_back() -> None:
    events = processing().quarantine(1, failure("Eicar found"), duration=1.0, at=NOON, by=WORKER)

    assert events[-1] == UploadQuarantined(
        at=NOON, by=WORKER, step="checksum", reason="Eicar found"
    )


def test_a_requested_retry_gives_a_failed_upload_a_new_allowance() -> None:
    upload = processing(retry_policy=RetryPolicy(attempts=1))
    for event in upload.fail_attempt(1, failure(), duration=0.1, random=0.1, at=NOON, by=WORKER):
        upload = upload.evolve(event)

    (retry,) = upload.request_retry(at=NOON, by=ALICE)
    upload = upload.evolve(retry)

    assert retry == RetryRequested(at=NOON, by=ALICE)
    assert (upload.state, upload.failures, upload.attempt) == (UploadState.RECEIVED, 0, 1)
    assert upload.queue(at=NOON, by="orchestrator") == (UploadQueued(at=NOON, by="orchestrator"),)


def test_only_a_failed_upload_is_retried() -> None:
    with pytest.raises(InvalidState, match="processing"):
        processing().request_retry(at=NOON, by=ALICE)


def test_cancelling_ends_the_open_attempt_too() -> None:
    assert processing().cancel("not needed", at=NOON, by=ALICE) == (
        AttemptAbandoned(at=NOON, by=ALICE, number=1, worker=WORKER, reason="not needed"),
        UploadCancelled(at=NOON, by=ALICE, reason="not needed"),
    )


def test_an_ended_upload_is_not_cancelled() -> None:
    upload = given(registered(), UploadExpired(at=NOON, by="orchestrator"))

    with pytest.raises(InvalidState, match="already expired"):
        upload.cancel("too late", at=NOON, by=ALICE)


def test_a_received_file_does_not_expire() -> None:
    with pytest.raises(InvalidState):
        given(registered(), received()).expire(at=NOON, by="orchestrator")


def test_only_a_quarantined_upload_is_released_and_then_it_is_completed() -> None:
    held = processing()
    for event in held.quarantine(1, failure("EICAR"), duration=1.0, at=NOON, by=WORKER):
        held = held.evolve(event)

    events = held.release("a test file", at=NOON, by=ALICE)

    assert [type(event) for event in events] == [UploadReleased, UploadCompleted]
    for event in events:
        held = held.evolve(event)
    assert held.state is UploadState.COMPLETED
    with pytest.raises(InvalidState, match="is completed"):
        held.release("again", at=NOON, by=ALICE)


def test_only_an_upload_that_has_ended_is_erased_and_only_once() -> None:
    erased = UploadErased(at=NOON, by=ALICE, attempts=1)
    cancelled = processing().cancel("not needed", at=NOON, by=ALICE)
    ended = processing().evolve(cancelled[0]).evolve(cancelled[1])

    for upload in (given(registered()), given(registered(), received()), processing()):
        with pytest.raises(InvalidState):
            upload.erase(at=NOON, by=ALICE)
    assert ended.erase(at=NOON, by=ALICE) == (erased,)
    with pytest.raises(InvalidState):
        ended.evolve(erased).erase(at=NOON, by=ALICE)


def test_a_partial_upload_that_has_arrived_expires() -> None:
    id = partial_upload_id_for(UUID(int=1))

    assert given(registered(), received(), id=id).expire(at=NOON, by="orchestrator") == (
        UploadExpired(at=NOON, by="orchestrator"),
    )
