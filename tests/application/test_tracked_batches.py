from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest
from msgspec.structs import replace

from application.append import RecordedEvent
from application.tracked_batches import (
    MissedEvent,
    TrackedUpload,
    TrackingChanges,
    apply_events,
)
from domain.batch.events import BatchPaused, BatchResumed, BatchRetryRequested, BatchSealed
from domain.event import Event, UnknownEvent
from domain.upload.events import (
    AttemptAbandoned,
    AttemptFailed,
    FileProgressed,
    RetryRequested,
    UploadCompleted,
    UploadFailed,
    UploadRejected,
)
from domain.upload.state import UploadState
from tests.builders import (
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


def history(**streams: Sequence[Event]) -> list[RecordedEvent]:
    """Return events of the batch, then of uploads, each stream from its first version on."""
    ids = {"batch": BATCH, "file": FILE}
    recorded: list[RecordedEvent] = []
    for name, events in streams.items():
        stream = ids.get(name) or UUID(int=len(name))
        for version, event in enumerate(events, 1):
            recorded.append(RecordedEvent(stream, version, len(recorded) + 1, event))  # type: ignore[arg-type]
    return recorded


def known(**streams: Sequence[Event]) -> TrackingChanges:
    return apply_events(history(**streams), {}, {})


def failed(*, retry: bool) -> AttemptFailed:
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


ENDING = UploadFailed(at=NOON, by=WORKER, step="checksum", message="reset")
PROCESSING = (registered(), received(), queued(), attempt())


def test_an_event_that_a_row_includes_changes_nothing() -> None:
    events = history(batch=[started()], file=[registered(), received(), queued()])
    first = apply_events(events, {}, {})

    again = apply_events(events, first.uploads, first.batches)

    assert again == TrackingChanges()


def test_a_missed_event_of_a_stream_is_an_error() -> None:
    first = known(batch=[started()], file=[registered()])
    skipped = RecordedEvent(FILE, 3, 9, queued())

    with pytest.raises(MissedEvent, match="version 3 after 1"):
        apply_events([skipped], first.uploads, first.batches)


def test_an_upload_of_an_unknown_batch_is_an_error() -> None:
    with pytest.raises(MissedEvent, match="unknown batch"):
        known(file=[registered()])


def test_an_event_of_an_unknown_type_changes_nothing_but_the_version() -> None:
    first = known(batch=[started()], file=[registered()])
    later_type = UnknownEvent(at=NOON, by=ALICE, topic="upload.renamed", content=b"{}")
    unknown = [RecordedEvent(id, 2, 8, later_type) for id in (FILE, BATCH, UUID(int=7))]

    changes = apply_events(unknown, first.uploads, first.batches)
    after = apply_events([RecordedEvent(FILE, 3, 9, received())], changes.uploads, changes.batches)

    assert changes.batches[BATCH].batch == replace(first.batches[BATCH].batch, version=2)
    assert changes.uploads[FILE].upload == replace(first.uploads[FILE].upload, version=2)
    assert after.uploads[FILE].upload.state is UploadState.RECEIVED


def test_every_event_of_an_upload_makes_its_batch_dirty() -> None:
    first = known(batch=[started()], file=[registered()])
    clean = {BATCH: first.batches[BATCH].mark_clean()}

    changes = apply_events([RecordedEvent(FILE, 2, 9, received())], first.uploads, clean)

    assert changes.batches[BATCH].dirty
    assert changes.uploads[FILE].upload.state is UploadState.RECEIVED


def test_a_batch_is_active_when_an_upload_of_it_is() -> None:
    first = known(batch=[started()], file=[registered()])
    progressed = FileProgressed(at=later(50), by=ALICE, phase="transfer", done=10)

    changes = apply_events([RecordedEvent(FILE, 2, 9, progressed)], first.uploads, first.batches)

    assert changes.batches[BATCH].active_at == later(50)


def test_a_failure_with_a_next_attempt_is_a_retry() -> None:
    changes = known(batch=[started()], file=[*PROCESSING, failed(retry=True)])

    assert changes.retries == {FILE}
    assert changes.uploads[FILE].retry_at == later(5)


def test_a_retry_that_has_begun_is_not_begun_twice() -> None:
    changes = known(batch=[started()], file=[*PROCESSING, failed(retry=True), attempt(2)])

    assert changes.retries == set()


def test_a_final_failure_is_not_retried() -> None:
    changes = known(batch=[started()], file=[*PROCESSING, failed(retry=False), ENDING])

    assert changes.retries == set()
    assert changes.uploads[FILE].upload.state is UploadState.FAILED


def test_a_rejected_file_is_tracked_as_rejected() -> None:
    rejected = UploadRejected(
        at=NOON, by=ALICE, batch=BATCH, owner="acme", path="x", code="c", message="m"
    )

    changes = known(batch=[started()], file=[rejected])

    assert changes.uploads[FILE].upload.state is UploadState.REJECTED


def test_a_resumed_batch_is_reported() -> None:
    paused, resumed = BatchPaused(at=NOON, by=ALICE), BatchResumed(at=NOON, by=ALICE)
    changes = known(batch=[started(), paused, resumed, BatchSealed(at=NOON, by=ALICE)])

    assert changes.resumed
    assert not changes.batches[BATCH].batch.paused


def test_a_retry_of_a_batch_is_reported() -> None:
    changes = known(batch=[started(), BatchRetryRequested(at=NOON, by=ALICE)])

    assert changes.batch_retries == {BATCH}


def test_a_retried_file_is_tracked_once() -> None:
    changes = known(batch=[started()], file=[*PROCESSING, failed(retry=True), attempt(2)])

    assert len(changes.uploads) == 1
    assert changes.uploads[FILE].upload.received == 100


def test_a_retry_on_request_makes_a_failed_upload_wait_for_its_release() -> None:
    asked = RetryRequested(at=NOON, by=ALICE)
    changes = known(batch=[started()], file=[*PROCESSING, failed(retry=False), ENDING, asked])
    again = changes.uploads[FILE]

    assert again.upload.state is UploadState.RECEIVED
    assert again.job is None


def test_an_ended_upload_has_neither_a_job_nor_losses() -> None:
    lost = AttemptAbandoned(at=NOON, by="orchestrator", number=1, worker=WORKER, reason="gone")
    upload = known(batch=[started()], file=[*PROCESSING, lost, attempt(2)]).uploads[FILE]
    carried = TrackedUpload(upload=upload.upload, job=7)
    done = carried.evolve(UploadCompleted(at=NOON, by=WORKER))

    assert (carried.job, carried.upload.losses) == (7, 1)
    assert (done.job, done.upload.losses) == (None, 0)
