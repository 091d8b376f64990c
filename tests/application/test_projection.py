from __future__ import annotations

from typing import Any

from application.projection import ROWS_REVISION, VERSION, fold_changes
from application.views import AttemptView, BatchView, UploadView, replay
from domain.batch.events import (
    BATCH_EVENTS,
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
    BatchSealed,
    UploadsAdded,
)
from domain.batch.state import Outcome
from domain.event import topic_of
from domain.upload.events import (
    UPLOAD_EVENTS,
    AttemptAbandoned,
    AttemptFailed,
    AttemptSucceeded,
    BytesLost,
    FileProgressed,
    RetryRequested,
    SizeDeclared,
    TransferInterrupted,
    UploadCancelled,
    UploadCompleted,
    UploadErased,
    UploadEvent,
    UploadFailed,
    UploadQuarantined,
    UploadRejected,
)
from domain.upload.state import UploadState
from tests.builders import (
    ALICE,
    BATCH,
    FILE,
    WORKER,
    attempt,
    later,
    queued,
    received,
    recorded,
    registered,
    started,
)

AT_5: dict[str, Any] = {"at": later(5), "by": WORKER}


def upload_after(*events: UploadEvent) -> UploadView:
    return replay(recorded(FILE, events)).uploads[FILE]


def attempt_after(*events: UploadEvent, number: int = 1) -> AttemptView:
    return replay(recorded(FILE, events)).attempts[FILE, number]


def batch_after(*events: BatchEvent) -> BatchView:
    return replay(recorded(BATCH, events)).batches[BATCH]


def transferred(done: int, total: int | None = 100, percent: float | None = 40.0) -> FileProgressed:
    return FileProgressed(
        at=later(1), by=ALICE, phase="transfer", done=done, total=total, percent=percent
    )


def stepped(step: str, percent: float) -> FileProgressed:
    return FileProgressed(**AT_5, phase=step, attempt=1, done=1, total=4, percent=percent)


def failed(message: str = "reset by peer", *, retry: bool = True, number: int = 1) -> AttemptFailed:
    return AttemptFailed(
        **AT_5,
        number=number,
        step="checksum",
        error_type="ConnectionResetError",
        message=message,
        permanent=False,
        duration=1.5,
        retry_at=later(9) if retry else None,
    )


def succeeded(number: int = 1) -> AttemptSucceeded:
    return AttemptSucceeded(
        **AT_5,
        number=number,
        results={"checksum": {"ok": True}},
        artifacts={"t": "b"},
        duration=2.0,
    )


PROCESSING = (registered(), received(), queued(), attempt())


# Transfer.


def test_a_registered_upload_shows_what_was_declared() -> None:
    row = upload_after(registered(metadata={"camera": "x"}, media_type="image/png"))

    assert (row.state, row.path, row.size, row.received) == ("registered", "photos/a.jpg", 100, 0)
    assert (row.metadata, row.media_type) == ({"camera": "x"}, "image/png")
    assert (row.phase, row.percent, row.ended_at) == (None, None, None)


def test_a_rejected_upload_shows_why_and_is_over() -> None:
    rejected = UploadRejected(
        at=later(3), by=ALICE, batch=BATCH, owner="acme", path="x", code="big", message="too big"
    )
    row = upload_after(rejected)

    assert (row.state, row.error, row.ended_at) == ("rejected", "too big", later(3))


def test_a_transfer_shows_the_bytes_and_the_percent_of_the_last_report() -> None:
    row = upload_after(registered(), transferred(20, percent=20.0), transferred(40))

    assert (row.state, row.phase, row.received, row.percent) == (
        "transferring",
        "transfer",
        40,
        40.0,
    )


def test_an_interrupted_transfer_keeps_its_bytes_and_the_last_recorded_percent() -> None:
    interrupted = TransferInterrupted(**AT_5, received=45, reason="gone")
    row = upload_after(registered(), transferred(40), interrupted)

    assert (row.state, row.received, row.percent) == ("transferring", 45, 40.0)


def test_lost_bytes_take_the_row_back_to_what_is_stored() -> None:
    row = upload_after(registered(), transferred(40), BytesLost(**AT_5, recorded=40, stored=10))

    assert (row.received, row.percent) == (10, None)


def test_a_size_that_becomes_known_is_shown() -> None:
    assert upload_after(registered(size=None), SizeDeclared(**AT_5, size=7)).size == 7


def test_a_received_file_is_all_there() -> None:
    row = upload_after(registered(size=None), received(100))

    assert (row.state, row.size, row.received, row.percent) == ("received", 100, 100, 100.0)
    assert (row.blob, row.received_at) == ("uploads/a", received().at)


# Attempts.


def test_an_attempt_begins_without_a_step_and_shows_the_one_it_reports() -> None:
    begun, reported = PROCESSING, (*PROCESSING, stepped("checksum", 25.0))

    assert (attempt_after(*begun).state, attempt_after(*begun).step) == ("running", None)
    assert (upload_after(*begun).phase, upload_after(*begun).percent) == (None, None)
    assert (attempt_after(*reported).step, attempt_after(*reported).percent) == ("checksum", 25.0)
    assert (upload_after(*reported).phase, upload_after(*reported).percent) == ("checksum", 25.0)


def test_progress_of_a_step_does_not_touch_the_bytes_received() -> None:
    assert upload_after(*PROCESSING, stepped("checksum", 25.0)).received == 100


def test_a_failed_attempt_keeps_the_error_as_it_was() -> None:
    events = (*PROCESSING, stepped("checksum", 25.0), failed())
    row, tried = upload_after(*events), attempt_after(*events)

    assert (row.state, row.error, row.error_step) == (
        "retry_scheduled",
        "reset by peer",
        "checksum",
    )
    assert (row.retry_at, row.phase, row.percent) == (later(9), None, None)
    assert (tried.state, tried.error_type, tried.message) == (
        "failed",
        "ConnectionResetError",
        "reset by peer",
    )
    assert (tried.retry_at, tried.duration, tried.permanent) == (later(9), 1.5, False)
    assert tried.ended_at == later(5)


def test_a_new_attempt_waits_for_no_retry_and_still_shows_the_last_error() -> None:
    row = upload_after(*PROCESSING, failed(), attempt(2))

    assert (row.state, row.attempt, row.retry_at) == ("processing", 2, None)
    assert row.error == "reset by peer"


def test_the_last_failure_shows_the_real_error_and_no_retry() -> None:
    last = failed("disk on fire", retry=False, number=2)
    over = UploadFailed(**AT_5, step="checksum", message="disk on fire")
    events = (*PROCESSING, failed(), attempt(2), last, over)
    row = upload_after(*events)

    assert (row.state, row.error, row.retry_at, row.ended_at) == (
        "failed",
        "disk on fire",
        None,
        later(5),
    )
    assert attempt_after(*events).message == "reset by peer"
    assert attempt_after(*events, number=2).message == "disk on fire"


def test_success_after_a_failure_clears_the_error_and_keeps_the_failed_attempt() -> None:
    events = (*PROCESSING, failed(), attempt(2), succeeded(2), UploadCompleted(**AT_5))
    row = upload_after(*events)

    assert (row.state, row.error, row.error_step, row.retry_at) == ("completed", None, None, None)
    assert (row.results, row.artifacts) == ({"checksum": {"ok": True}}, {"t": "b"})
    assert (attempt_after(*events).state, attempt_after(*events).message) == (
        "failed",
        "reset by peer",
    )
    second = attempt_after(*events, number=2)
    assert (second.state, second.duration, second.ended_at) == ("succeeded", 2.0, later(5))


def test_an_abandoned_attempt_requeues_the_upload_with_the_reason() -> None:
    gone = AttemptAbandoned(**AT_5, number=1, worker=WORKER, reason="worker died")
    events = (*PROCESSING, stepped("checksum", 25.0), gone)

    assert (upload_after(*events).state, upload_after(*events).percent) == ("queued", None)
    tried = attempt_after(*events)
    assert (tried.state, tried.message, tried.step) == ("abandoned", "worker died", "checksum")


def test_a_quarantined_upload_names_the_finding() -> None:
    held = UploadQuarantined(**AT_5, step="antivirus", reason="EICAR")
    row = upload_after(*PROCESSING, failed("EICAR", retry=False), held)

    assert (row.state, row.error, row.error_step) == ("quarantined", "EICAR", "antivirus")


def test_a_requested_retry_begins_again_and_is_not_over() -> None:
    over = UploadFailed(**AT_5, step="checksum", message="reset by peer")
    asked = RetryRequested(at=later(8), by=ALICE)
    row = upload_after(*PROCESSING, failed(retry=False), over, asked)

    assert (row.state, row.ended_at, row.error) == ("received", None, "reset by peer")


def test_a_cancelled_upload_waits_for_no_retry() -> None:
    row = upload_after(*PROCESSING, failed(), UploadCancelled(**AT_5, reason="enough"))

    assert (row.state, row.retry_at, row.ended_at) == ("cancelled", None, later(5))


def test_an_erased_upload_keeps_its_place_and_nothing_of_the_file() -> None:
    over = (succeeded(), UploadCompleted(**AT_5), UploadErased(at=later(9), by=ALICE))
    row = upload_after(*PROCESSING, *over)

    assert (row.state, row.path, row.blob, row.metadata) == ("erased", "", None, {})
    assert (row.results, row.artifacts) == ({}, {})
    assert row.ended_at == later(5)


def test_an_error_with_characters_that_a_row_cannot_hold_is_still_shown() -> None:
    row = upload_after(*PROCESSING, failed("bad \0 byte"))

    assert row.error == "bad \ufffd byte"


# Batches.


def progressed(**counts: int) -> BatchProgressed:
    return BatchProgressed(
        at=later(2),
        by="orchestrator",
        counts={UploadState(state): count for state, count in counts.items()},
        bytes_received=30,
        bytes_total=60,
        percent=25.0,
        through=9,
    )


def test_progress_of_a_batch_is_what_was_counted() -> None:
    row = batch_after(started(label="holiday"), progressed(queued=2, completed=3))

    assert (row.label, row.uploads, row.counts) == ("holiday", 5, {"queued": 2, "completed": 3})
    assert (row.bytes_received, row.bytes_total, row.percent) == (30, 60, 25.0)


def test_added_uploads_do_not_change_the_counts() -> None:
    row = batch_after(started(), UploadsAdded(**AT_5, count=7, bytes=70))

    assert (row.uploads, row.version) == (0, 2)


def test_a_sealed_batch_has_the_time_of_its_seal() -> None:
    row = batch_after(started(), BatchSealed(**AT_5))

    assert (row.state, row.sealed_at) == ("sealed", later(5))


def test_a_paused_and_resumed_batch_shows_its_state() -> None:
    assert batch_after(started(), BatchPaused(**AT_5)).paused
    assert not batch_after(started(), BatchPaused(**AT_5), BatchResumed(**AT_5)).paused


def test_a_pause_by_the_orchestrator_has_a_reason_until_the_batch_resumes() -> None:
    paused = BatchPaused(**AT_5, reason="9 uploads failed")

    assert batch_after(started(), paused).pause_reason == "9 uploads failed"
    assert batch_after(started(), paused, BatchResumed(**AT_5)).pause_reason is None
    assert batch_after(started(), BatchPaused(**AT_5)).pause_reason is None


def test_a_batch_that_is_called_off_is_cancelling_and_not_paused() -> None:
    row = batch_after(started(), BatchPaused(**AT_5), BatchCancelled(**AT_5, reason="enough"))

    assert (row.state, row.paused, row.outcome) == ("cancelling", False, None)
    assert batch_after(started(), BatchExpired(**AT_5)).state == "cancelling"


def test_a_renamed_batch_has_its_new_label_until_it_is_erased() -> None:
    first, renamed = started(label="summer"), BatchRenamed(at=later(1), by=ALICE, label="winter")
    erased = BatchErased(at=later(2), by=ALICE)

    def label(*events: BatchEvent) -> str:
        return replay(recorded(BATCH, events)).batches[BATCH].label

    assert (label(first, renamed), label(first, renamed, erased)) == ("winter", "")


def test_a_completed_batch_shows_its_outcome_and_a_reopened_one_does_not() -> None:
    over = BatchCompleted(
        at=later(7),
        by="orchestrator",
        outcome=Outcome.COMPLETED_WITH_FAILURES,
        counts={UploadState.COMPLETED: 1, UploadState.FAILED: 1},
        duration=7.0,
    )
    done = batch_after(started(), BatchSealed(**AT_5), over)
    assert (done.state, done.outcome, done.percent) == (
        "completed",
        "completed_with_failures",
        100.0,
    )
    assert (done.uploads, done.completed_at) == (2, later(7))

    again = batch_after(
        started(), BatchSealed(**AT_5), over, BatchReopened(at=later(8), by=ALICE, reason="retry")
    )
    assert (again.state, again.outcome, again.completed_at) == ("sealed", None, None)


# Folding.


def test_the_later_of_two_assignments_in_one_fold_wins() -> None:
    folded = fold_changes(recorded(FILE, [registered(), transferred(20), transferred(40)]))

    assert folded.position == 3
    uploads = folded.tables["uploads"]
    assert uploads.created[FILE]["received"] == 40
    assert not uploads.updated


def test_a_row_that_began_before_the_fold_is_updated_and_not_created() -> None:
    events = recorded(FILE, [registered(), transferred(20), received()])
    uploads = fold_changes(events[1:]).tables["uploads"]

    assert not uploads.created
    assert uploads.updated[FILE]["state"] == "received"
    assert "path" not in uploads.updated[FILE]


def test_the_version_of_the_rows_rises_with_every_new_event_type() -> None:
    """Rows of a version that skipped the new type are rebuilt only if the version rises.

    40 is the first version that counts types; a type that went would make it fall.
    """
    topics = {topic_of(event) for event in (*UPLOAD_EVENTS, *BATCH_EVENTS)}

    assert ROWS_REVISION + len(topics) == VERSION
    assert VERSION >= 40
