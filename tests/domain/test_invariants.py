"""Any legal sequence of decisions keeps the invariants of the read model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from domain.batch.aggregate import Batch
from domain.batch.events import BatchCompleted, BatchEvent
from domain.batch.state import BatchState, Outcome, all_ended, outcome_of
from domain.errors import CommandRejected
from domain.event import Event
from domain.file import FileDeclaration
from domain.retry import RetryPolicy
from domain.upload.aggregate import Upload
from domain.upload.events import (
    AttemptAbandoned,
    AttemptFailed,
    AttemptStarted,
    AttemptSucceeded,
    BytesLost,
    FileProgressed,
    FileReceived,
    UploadCompleted,
    UploadEvent,
)
from domain.upload.state import UploadState
from tests.builders import ALICE, BATCH, NOON, failure, started

SIZES = st.one_of(st.none(), st.integers(min_value=0, max_value=50))
BYTES = st.integers(min_value=-1, max_value=60)
NUMBERS = st.integers(min_value=1, max_value=6)


class UploadsOfABatch(RuleBasedStateMachine):
    """Clients, workers and people command at random; some commands are refused, none lies."""

    uploads = Bundle("uploads")

    def __init__(self) -> None:
        super().__init__()
        self.batch = Batch.begin(BATCH, started(retry_policy=RetryPolicy(attempts=2)))
        self.batch_history: list[BatchEvent] = []
        self.states: dict[UUID, Upload] = {}
        self.histories: dict[UUID, list[UploadEvent]] = {}

    @rule(target=uploads, size=SIZES)
    def register_upload(self, size: int | None) -> UUID | None:
        file = FileDeclaration(path=f"file-{len(self.states)}", size=size)
        try:
            id, events = self.batch.register_upload(file, b"", at=NOON, by=ALICE)
        except CommandRejected:
            return None
        self.states[id] = Upload.begin(id, events[0])
        self.histories[id] = list(events)
        return id

    @rule(id=uploads, received=BYTES)
    def progress(self, id: UUID | None, received: int) -> None:
        self.decide(id, lambda upload: upload.progress_transfer(received, at=NOON, by=ALICE))

    @rule(id=uploads, received=BYTES)
    def interrupt(self, id: UUID | None, received: int) -> None:
        self.decide(
            id, lambda upload: upload.interrupt_transfer(received, "gone", at=NOON, by=ALICE)
        )

    @rule(id=uploads, stored=BYTES)
    def lose(self, id: UUID | None, stored: int) -> None:
        self.decide(id, lambda upload: upload.record_data_loss(stored, at=NOON, by=ALICE))

    @rule(id=uploads, size=BYTES)
    def receive(self, id: UUID | None, size: int) -> None:
        self.decide(id, lambda upload: upload.receive(size, "blob", at=NOON, by=ALICE))

    @rule(id=uploads)
    def receive_all(self, id: UUID | None) -> None:
        self.decide(id, lambda upload: upload.receive(upload.size or 0, "blob", at=NOON, by=ALICE))

    @rule(id=uploads)
    def queue(self, id: UUID | None) -> None:
        self.decide(id, lambda upload: upload.queue(at=NOON, by=ALICE))

    @rule(id=uploads, worker=st.sampled_from(["one", "two"]))
    def start_attempt(self, id: UUID | None, worker: str) -> None:
        self.decide(id, lambda upload: upload.start_attempt(worker, at=NOON, by=worker))

    @rule(id=uploads, number=NUMBERS, permanent=st.booleans())
    def fail(self, id: UUID | None, number: int, permanent: bool) -> None:
        what = failure(permanent=permanent)
        self.decide(
            id,
            lambda upload: upload.fail_attempt(
                number, what, duration=0.1, random=0.5, at=NOON, by=ALICE
            ),
        )

    @rule(id=uploads, number=NUMBERS)
    def succeed(self, id: UUID | None, number: int) -> None:
        self.decide(
            id,
            lambda upload: upload.succeed_attempt(
                number, results={}, artifacts={}, duration=0.1, at=NOON, by=ALICE
            ),
        )

    @rule(id=uploads, number=NUMBERS)
    def quarantine(self, id: UUID | None, number: int) -> None:
        self.decide(
            id, lambda upload: upload.quarantine(number, failure(), duration=0.1, at=NOON, by=ALICE)
        )

    @rule(id=uploads, number=NUMBERS)
    def abandon(self, id: UUID | None, number: int) -> None:
        self.decide(id, lambda upload: upload.abandon_attempt(number, "died", at=NOON, by=ALICE))

    @rule(id=uploads)
    def retry(self, id: UUID | None) -> None:
        self.decide(id, lambda upload: upload.request_retry(at=NOON, by=ALICE))

    @rule(id=uploads)
    def cancel(self, id: UUID | None) -> None:
        self.decide(id, lambda upload: upload.cancel("no", at=NOON, by=ALICE))

    @rule(id=uploads)
    def expire(self, id: UUID | None) -> None:
        self.decide(id, lambda upload: upload.expire(at=NOON, by=ALICE))

    @rule()
    def seal(self) -> None:
        self.decide_batch(lambda batch: batch.seal(at=NOON, by=ALICE))

    @rule()
    def cancel_batch(self) -> None:
        self.decide_batch(lambda batch: batch.cancel("no", at=NOON, by=ALICE))

    @rule()
    def complete_batch(self) -> None:
        counts = self.counts()
        self.decide_batch(lambda batch: batch.complete(counts, at=NOON, by=ALICE))

    @rule()
    def reopen_batch(self) -> None:
        self.decide_batch(lambda batch: batch.reopen("again", at=NOON, by=ALICE))

    def decide(self, id: UUID | None, decide: Callable[[Upload], tuple[UploadEvent, ...]]) -> None:
        if id is None:
            return
        try:
            events = decide(self.states[id])
        except CommandRejected:
            return
        for event in events:
            self.states[id] = self.states[id].evolve(event)
        self.histories[id] += events

    def decide_batch(self, decide: Callable[[Batch], tuple[BatchEvent, ...]]) -> None:
        try:
            events = decide(self.batch)
        except CommandRejected:
            return
        for event in events:
            self.batch = self.batch.evolve(event)
        self.batch_history += events

    def counts(self) -> dict[UploadState, int]:
        return dict(Counter(upload.state for upload in self.states.values()))

    @invariant()
    def received_never_passes_the_size(self) -> None:
        for upload in self.states.values():
            assert upload.received >= 0
            assert upload.size is None or upload.received <= upload.size

    @invariant()
    def bytes_go_back_only_where_a_loss_was_reported(self) -> None:
        for history in self.histories.values():
            done = 0
            for event in history:
                if isinstance(event, BytesLost):
                    done = event.stored
                elif isinstance(event, FileProgressed) and event.phase == "transfer":
                    assert event.done > done
                    done = event.done
                elif isinstance(event, FileReceived):
                    assert event.size >= done

    @invariant()
    def one_attempt_at_most_is_open_and_numbers_rise_by_one(self) -> None:
        for id, history in self.histories.items():
            numbers = [event.number for event in history if isinstance(event, AttemptStarted)]
            assert numbers == list(range(1, len(numbers) + 1))
            ended = sum(isinstance(event, _ENDS) for event in history)
            assert len(numbers) - ended == (self.states[id].worker is not None)

    @invariant()
    def completion_happens_once_and_after_a_success(self) -> None:
        for history in self.histories.values():
            completions = [n for n, e in enumerate(history) if isinstance(e, UploadCompleted)]
            assert len(completions) <= 1
            assert all(isinstance(history[n - 1], AttemptSucceeded) for n in completions)

    @invariant()
    def versions_count_the_events(self) -> None:
        for id, history in self.histories.items():
            assert self.states[id].version == len(history)

    @invariant()
    def a_completed_batch_counted_the_set_as_it_was(self) -> None:
        if self.batch.state is BatchState.COMPLETED:
            completed = self.batch_history[-1]
            assert isinstance(completed, BatchCompleted)
            assert all_ended(completed.counts)
            assert sum(completed.counts.values()) == len(self.states)
            ending = Outcome.CANCELLED if self.batch.pending_outcome else None
            assert completed.outcome is outcome_of(completed.counts, ending)


_ENDS: tuple[type[Event], ...] = (AttemptFailed, AttemptAbandoned, AttemptSucceeded)

TestUploadsOfABatch = UploadsOfABatch.TestCase
TestUploadsOfABatch.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
