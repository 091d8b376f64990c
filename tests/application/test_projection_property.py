from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from application.append import RecordedEvent
from application.projection import fold_changes, row_changes
from application.views import ReplayedRows, replay
from domain.batch.aggregate import Batch
from domain.batch.events import BatchEvent
from domain.batch.state import BatchState
from domain.upload.aggregate import Upload
from domain.upload.events import AttemptStarted, UploadEvent
from domain.upload.state import UploadState
from tests.builders import BATCH, FILE, batch_histories, recorded, upload_histories

POSITION = 70
relaxed = settings(deadline=None)


@relaxed
@given(upload_histories())
def test_the_row_of_an_upload_stands_where_its_aggregate_does(history: list[UploadEvent]) -> None:
    upload = Upload.begin(FILE, history[0])
    for event in history[1:]:
        upload = upload.evolve(event)

    row = replay(recorded(FILE, history, after=POSITION)).uploads[FILE]

    assert (row.state, row.received, row.attempt, row.version) == (
        upload.state,
        upload.received,
        upload.attempt,
        upload.version,
    )
    assert (row.batch, row.owner) == (upload.batch, upload.owner)
    assert row.size == upload.size
    assert row.position == POSITION + len(history)
    assert row.updated_at == history[-1].at


@relaxed
@given(batch_histories())
def test_the_row_of_a_batch_stands_where_its_aggregate_does(history: list[BatchEvent]) -> None:
    batch = Batch.begin(BATCH, history[0])
    for event in history[1:]:
        batch = batch.evolve(event)

    row = replay(recorded(BATCH, history)).batches[BATCH]

    assert (row.state, row.outcome, row.paused, row.version) == (
        batch.state,
        batch.outcome,
        batch.paused,
        batch.version,
    )
    assert row.uploads == sum(row.counts.values())
    assert (row.completed_at is not None) == (batch.state is BatchState.COMPLETED)


@relaxed
@given(upload_histories())
def test_every_attempt_has_a_row_and_only_an_open_one_is_running(
    history: list[UploadEvent],
) -> None:
    rows = replay(recorded(FILE, history))
    upload = rows.uploads[FILE]

    numbers = [event.number for event in history if isinstance(event, AttemptStarted)]
    assert sorted(rows.attempts) == [(FILE, number) for number in numbers]
    running = [attempt for attempt in rows.attempts.values() if attempt.state == "running"]
    assert bool(running) == (upload.state == UploadState.PROCESSING)
    assert all(
        (attempt.ended_at is None) == (attempt in running) for attempt in rows.attempts.values()
    )


@relaxed
@given(upload_histories())
def test_a_row_that_has_ended_has_its_end_and_waits_for_nothing(history: list[UploadEvent]) -> None:
    row = replay(recorded(FILE, history)).uploads[FILE]

    assert (row.ended_at is not None) == UploadState(row.state).ended
    if row.retry_at is not None:
        assert row.state == UploadState.RETRY_SCHEDULED
    if row.state == UploadState.COMPLETED:
        assert row.error is None
    if row.state in (UploadState.FAILED, UploadState.QUARANTINED, UploadState.REJECTED):
        assert row.error is not None


@relaxed
@given(upload_histories(), st.integers(1, 7))
def test_folding_in_chunks_of_any_size_leads_to_the_same_rows(
    history: list[UploadEvent], size: int
) -> None:
    events = recorded(FILE, history)
    rows = ReplayedRows()
    for start in range(0, len(events), size):
        rows.apply(events[start : start + size])

    assert rows == replay(events)


@relaxed
@given(upload_histories())
def test_applying_an_event_again_changes_nothing(history: list[UploadEvent]) -> None:
    events = recorded(FILE, history)
    rows = replay(events)
    again = replay([*events, events[-1]])

    assert again == rows


@relaxed
@given(upload_histories())
def test_every_change_has_the_position_of_its_event(history: list[UploadEvent]) -> None:
    for event in recorded(FILE, history):
        for change in row_changes(event):
            assert change.columns["position"] == event.position
            if change.table == "uploads":
                assert change.columns["version"] == event.version
                assert change.columns["updated_at"] == event.event.at


@relaxed
@given(upload_histories())
def test_no_text_holds_what_the_database_cannot_store(history: list[UploadEvent]) -> None:
    folded = fold_changes(recorded(FILE, history))

    values = [
        value
        for rows in folded.tables.values()
        for columns in (*rows.created.values(), *rows.updated.values())
        for value in columns.values()
    ]
    assert "\0" not in repr(values).replace("\\x00", "\0")


def test_a_fold_of_nothing_changes_nothing() -> None:
    nothing: list[RecordedEvent] = []
    folded = fold_changes(nothing)

    assert folded.position == 0
    assert not any(rows.created or rows.updated for rows in folded.tables.values())
