"""Properties of the orchestrator's rounds, over any legal history of uploads and batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from application.append import RecordedEvent
from application.orchestrator import (
    BatchToCount,
    Decision,
    RoundConsequences,
    RoundInputs,
    RoundPlan,
    UploadToCancel,
    plan_round,
)
from application.tracked_batches import (
    BatchCounts,
    TrackedBatch,
    TrackedUpload,
    TrackingChanges,
    apply_events,
)
from domain.batch.events import BatchCompleted, BatchProgressed
from domain.batch.state import BatchState
from domain.event import Event
from domain.upload.state import UploadState
from tests.builders import batch_histories, later, upload_histories

ONE, TWO = UUID(int=1), UUID(int=2)
NOW = later(3600)

Histories: TypeAlias = Mapping[UUID, Sequence[Event]]
Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]


@st.composite
def histories(draw: Draw, batch: UUID = ONE, owner: str = "acme") -> Histories:
    """Events of a batch and of up to four uploads of it, by stream."""
    first, *rest = draw(batch_histories())
    streams: dict[UUID, Sequence[Event]] = {batch: [replace(first, owner=owner), *rest]}
    for number in range(draw(st.integers(0, 4))):
        events = draw(upload_histories(batch, f"{number}.bin"))
        id = UUID(int=batch.int * 1000 + number)
        streams[id] = [replace(events[0], owner=owner), *events[1:]]
    return streams


def recorded_of(streams: Histories) -> list[RecordedEvent]:
    events: list[RecordedEvent] = []
    for stream, history in streams.items():
        for version, event in enumerate(history, 1):
            events.append(RecordedEvent(stream, version, len(events) + 1, event))  # type: ignore[arg-type]
    return events


class Tables:
    """The orchestrator's tables in memory; a round selects from them as the queries do."""

    def __init__(self) -> None:
        self.uploads: dict[UUID, TrackedUpload] = {}
        self.batches: dict[UUID, TrackedBatch] = {}
        self.jobs: set[int] = set()
        self.deferred: list[UUID] = []
        self.suspects: Mapping[UUID, int] = {}

    def apply(self, events: Iterable[RecordedEvent]) -> TrackingChanges:
        changes = apply_events(events, self.uploads, self.batches)
        self.uploads |= changes.uploads
        self.batches |= changes.batches
        return changes

    def inputs(self, changes: TrackingChanges) -> RoundInputs:
        return RoundInputs(
            through=1,
            to_cancel=[
                UploadToCancel(t, self.of(t).batch.pending_outcome, self.of(t).reason)
                for t in self.uploads.values()
                if self.of(t).batch.state is BatchState.CANCELLING and not t.upload.state.ended
            ],
            retries=[changes.uploads[id] for id in sorted(changes.retries)],
            lost=[t for t in self.uploads.values() if self.is_lost(t)],
            suspects=self.suspects,
            ready=[
                t
                for t in self.uploads.values()
                if t.upload.state is UploadState.RECEIVED and self.runs(t)
            ],
            to_count=[
                BatchToCount(t, self.counts(id), is_due=True, is_retrying=False)
                for id, t in self.batches.items()
                if t.dirty
            ],
            max_losses=2,
            max_job_uploads=20,
        )

    def store(self, plan: RoundPlan, accepted: Sequence[bool]) -> RoundConsequences:
        consequences = plan.consequences(accepted)
        carriers = {}
        for job in consequences.jobs:
            id = len(self.deferred) + 1
            self.jobs.add(id)
            carriers |= dict.fromkeys(job.uploads, id)
            self.deferred += job.uploads
        for upload in consequences.uploads_with_jobs(carriers):
            self.uploads[upload.upload.id] = upload
        self.batches |= {t.batch.id: t for t in consequences.batches}
        for id in consequences.dirty:
            self.batches[id] = replace(self.batches[id], dirty=True)
        self.suspects = plan.suspects
        return consequences

    def of(self, tracked: TrackedUpload) -> TrackedBatch:
        return self.batches[tracked.upload.batch]

    def runs(self, tracked: TrackedUpload) -> bool:
        batch = self.of(tracked).batch
        return batch.state in (BatchState.OPEN, BatchState.SEALED) and not batch.paused

    def is_lost(self, tracked: TrackedUpload) -> bool:
        working = (UploadState.QUEUED, UploadState.PROCESSING, UploadState.RETRY_SCHEDULED)
        return (
            tracked.upload.state in working and tracked.job not in self.jobs and self.runs(tracked)
        )

    def counts(self, batch: UUID) -> BatchCounts:
        uploads = [t.upload for t in self.uploads.values() if t.upload.batch == batch]
        files = [u for u in uploads if u.state is not UploadState.REJECTED]
        return BatchCounts(
            Counter(upload.state for upload in uploads),
            sum(upload.received for upload in files),
            sum(upload.received if upload.size is None else upload.size for upload in files),
        )


def planned(streams: Histories, at: datetime = NOW) -> tuple[Tables, RoundInputs, RoundPlan]:
    tables = Tables()
    inputs = tables.inputs(tables.apply(recorded_of(streams)))
    return tables, inputs, plan_round(inputs, at)


def some_of(plan: RoundPlan) -> st.SearchStrategy[list[bool]]:
    """Return the decisions that the log accepts."""
    count = len(plan.decisions)
    return st.lists(st.booleans(), min_size=count, max_size=count)


def everything(plan: RoundPlan) -> list[bool]:
    return [True] * len(plan.decisions)


@given(histories())
def test_a_round_planned_twice_from_the_same_inputs_is_the_same_plan(streams: Histories) -> None:
    _, inputs, plan = planned(streams)

    assert plan_round(inputs, NOW) == plan
    assert plan.consequences(everything(plan)) == plan.consequences(everything(plan))


@given(histories(), st.data())
def test_an_upload_never_gets_two_jobs(streams: Histories, data: st.DataObject) -> None:
    tables, _, plan = planned(streams)
    for _ in range(4):
        accepted = data.draw(
            st.lists(st.booleans(), min_size=(n := len(plan.decisions)), max_size=n)
        )
        tables.store(plan, accepted)
        plan = plan_round(tables.inputs(TrackingChanges()), NOW)

    assert max(Counter(tables.deferred).values(), default=0) <= 1


@given(histories())
def test_only_the_accepted_decisions_have_consequences(streams: Histories) -> None:
    _, _, plan = planned(streams)

    none = plan.consequences([False] * len(plan.decisions))

    assert none.uploads == plan.stranded
    assert none.dirty == frozenset()
    waiting = {t.upload.id for t in plan.stranded}
    assert {upload for job in none.jobs for upload in job.uploads} <= waiting


@given(histories())
def test_a_cancelled_or_expired_batch_enqueues_nothing(streams: Histories) -> None:
    tables, _, plan = planned(streams)
    cancelling = {id for id, t in tables.batches.items() if t.batch.state is BatchState.CANCELLING}

    for _ in range(3):
        consequences = tables.store(plan, everything(plan))
        assert not {job.batch for job in consequences.jobs} & cancelling
        plan = plan_round(tables.inputs(TrackingChanges()), NOW)


@given(histories())
def test_a_cancelled_or_expired_batch_ends_within_two_rounds(streams: Histories) -> None:
    tables, _, plan = planned(streams)
    cancelling = [id for id, t in tables.batches.items() if t.batch.state is BatchState.CANCELLING]

    for _ in range(2):
        tables.store(plan, everything(plan))
        plan = plan_round(tables.inputs(TrackingChanges()), NOW)

    for id in cancelling:
        assert tables.batches[id].batch.state is BatchState.COMPLETED
        uploads = [t.upload for t in tables.uploads.values() if t.upload.batch == id]
        assert all(upload.state.ended for upload in uploads)


@given(histories())
def test_recorded_counts_are_those_of_the_uploads(streams: Histories) -> None:
    tables, _, plan = planned(streams)

    for decision in plan.decisions:
        if isinstance(decision.subject, TrackedBatch):
            counts = tables.counts(decision.subject.batch.id)
            for event in decision.events:
                if isinstance(event, BatchProgressed | BatchCompleted):
                    assert event.counts == counts.by_state
                if isinstance(event, BatchProgressed):
                    assert event.bytes_received == counts.bytes_received
                    assert event.bytes_total == counts.bytes_total


@given(histories())
def test_a_batch_completes_only_if_all_its_uploads_have_ended(streams: Histories) -> None:
    tables, _, plan = planned(streams)

    for decision in plan.decisions:
        if any(isinstance(event, BatchCompleted) for event in decision.events):
            assert isinstance(decision.subject, TrackedBatch)
            id = decision.subject.batch.id
            states = [t.upload.state for t in tables.uploads.values() if t.upload.batch == id]
            assert all(state.ended for state in states)


@given(histories())
def test_every_stream_gets_at_most_one_decision_at_its_current_version(
    streams: Histories,
) -> None:
    tables, _, plan = planned(streams)

    appends = [decision.append for decision in plan.decisions]

    written = [write for append in appends for write in append.writes]
    assert max(Counter(write.stream for write in written).values(), default=0) <= 1
    for write in written:
        known = tables.uploads.get(write.stream)
        batch = tables.batches.get(write.stream)
        version = known.upload.version if known else batch.batch.version if batch else None
        assert write.expected_version == version
        assert write.events


@given(histories(ONE, "acme"), histories(TWO, "globex"), st.booleans())
def test_batches_of_two_owners_are_decided_as_if_each_were_alone(
    first: Histories, second: Histories, swapped: bool
) -> None:
    together = {**second, **first} if swapped else {**first, **second}

    _, _, plan = planned(together)

    for streams in (first, second):
        _, _, alone = planned(streams)
        assert of_streams(plan, streams) == sorted(alone.decisions, key=stream_of)
        consequences = plan.consequences(everything(plan))
        expected = alone.consequences(everything(alone))
        assert uploads_with_jobs(consequences, streams) == uploads_with_jobs(expected, streams)
        assert {t for t in consequences.dirty if t in streams} == expected.dirty


@given(histories(), st.integers(1, 30))
def test_events_applied_in_several_chunks_lead_to_the_same_rows(
    streams: Histories, size: int
) -> None:
    events = recorded_of(streams)
    whole, chunked = Tables(), Tables()

    whole.apply(events)
    for start in range(0, len(events), size):
        chunked.apply(events[start : start + size])

    assert (chunked.uploads, chunked.batches) == (whole.uploads, whole.batches)


@given(histories())
def test_own_events_that_are_read_again_change_nothing(streams: Histories) -> None:
    tables, _, plan = planned(streams)
    tables.store(plan, everything(plan))
    read = [
        RecordedEvent(write.stream, (write.expected_version or 0) + number, 1000, event)  # type: ignore[arg-type]
        for decision in plan.decisions
        for write in decision.append.writes
        for number, event in enumerate(write.events, 1)
    ]

    assert tables.apply(read) == TrackingChanges()


def stream_of(decision: Decision) -> UUID:
    return decision.append.writes[0].stream


def of_streams(plan: RoundPlan, streams: Histories) -> list[Decision]:
    return sorted((d for d in plan.decisions if stream_of(d) in streams), key=stream_of)


def uploads_with_jobs(consequences: RoundConsequences, streams: Histories) -> set[UUID]:
    return {upload for job in consequences.jobs for upload in job.uploads if upload in streams}
