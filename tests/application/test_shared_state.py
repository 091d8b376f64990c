"""No event, decision or projection hands out a mutable object that it keeps."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import cycle
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import application.append
import application.orchestrator
import application.projected_columns
import application.projection
import application.tracked_batches
import application.views
import domain
from application.append import RecordedEvent
from application.projection import fold_changes, row_changes
from application.views import ReplayedRows, replay
from domain.batch.aggregate import Batch
from domain.batch.events import BatchEvent, BatchPaused, BatchResumed, BatchSealed
from domain.catalogue import DomainEvent
from domain.event import topic_of
from domain.ids import upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState
from infrastructure.event_store.codec import CODEC
from tests.builders import (
    ALICE,
    BATCH,
    FILE,
    NOON,
    Draw,
    batch_histories,
    later,
    processing,
    recorded,
    started,
    upload_histories,
)
from tests.infrastructure.event_store.examples import EXAMPLES

OTHER = UUID("019b0000-0000-7000-8000-000000000002")
NOW: dict[str, Any] = {"at": later(9), "by": ALICE}


class Stream(NamedTuple):
    id: UUID
    events: Sequence[DomainEvent]


# Any interleaving of streams, in chunks of any size.


@st.composite
def logs(draw: Draw) -> tuple[list[Stream], list[RecordedEvent]]:
    """A few batches of different owners with uploads, as one log."""
    streams = []
    for number in range(draw(st.integers(1, 3))):
        batch, owner = UUID(int=BATCH.int + number), f"owner-{number}"
        streams.append(Stream(batch, _of_owner(draw(batch_histories(fewest=6)), owner=owner)))
        for path in ("a.bin", "b.bin")[: draw(st.integers(0, 2))]:
            history = draw(upload_histories(batch=batch, path=path))
            streams.append(Stream(upload_id_for(batch, path, b""), _of_owner(history, owner=owner)))
    turns = [stream for stream in streams for _ in stream.events]
    draw(st.randoms(use_true_random=False)).shuffle(turns)
    return streams, _interleaved(turns)


def _of_owner(history: Sequence[DomainEvent], *, owner: str) -> list[DomainEvent]:
    first: Any = history[0]
    return [msgspec.structs.replace(first, owner=owner), *history[1:]]


def _interleaved(turns: Sequence[Stream]) -> list[RecordedEvent]:
    """The next event of each stream whose turn it is, at rising positions."""
    versions: dict[UUID, int] = {}
    log = []
    for position, stream in enumerate(turns, start=1):
        version = versions.get(stream.id, 0) + 1
        versions[stream.id] = version
        log.append(RecordedEvent(stream.id, version, position, stream.events[version - 1]))
    return log


def _rows_in_chunks(log: Sequence[RecordedEvent], sizes: Sequence[int]) -> ReplayedRows:
    rows, start = ReplayedRows(), 0
    for size in cycle(sizes):
        rows.apply(log[start : start + size])
        start += size
        if start >= len(log):
            return rows
    raise AssertionError("a cycle does not end")


@settings(deadline=None)
@given(logs(), st.lists(st.integers(1, 12), min_size=1, max_size=4))
def test_rows_of_any_interleaving_in_any_chunks_are_those_of_each_stream_alone(
    drawn: tuple[list[Stream], list[RecordedEvent]], sizes: list[int]
) -> None:
    streams, log = drawn
    for _ in range(2):  # what an earlier fold left behind in this process must not show
        together = _rows_in_chunks(log, sizes)
        for id, _events in streams:
            alone = replay(event for event in log if event.stream == id)
            assert together.batches.get(id) == alone.batches.get(id)
            assert together.uploads.get(id) == alone.uploads.get(id)
            assert _attempts(together, id) == _attempts(alone, id)
            _require_aggregate_state(together, id, [e.event for e in log if e.stream == id])
        assert len(together.batches) + len(together.uploads) == len(streams)


def _attempts(rows: ReplayedRows, upload: UUID) -> dict[Any, Any]:
    return {
        key: row
        for key, row in rows.attempts.items()
        if isinstance(key, tuple) and key[0] == upload
    }


def _require_aggregate_state(rows: ReplayedRows, id: UUID, events: Sequence[Any]) -> None:
    """The row agrees with the aggregate, which is evolved by other code than the row."""
    if id in rows.batches:
        batch = Batch.begin(id, events[0])
        for event in events[1:]:
            batch = batch.evolve(event)
        row = rows.batches[id]
        assert (row.owner, row.state, row.paused, row.outcome) == (
            batch.owner,
            batch.state,
            batch.paused,
            batch.outcome,
        )
        return
    upload = Upload.begin(id, events[0])
    for event in events[1:]:
        upload = upload.evolve(event)
    shown = rows.uploads[id]
    assert (shown.owner, shown.state, shown.received, shown.metadata) == (
        upload.owner,
        upload.state,
        upload.received,
        upload.metadata,
    )


def test_a_resumed_batch_keeps_its_row_when_another_owner_seals_theirs_in_the_same_chunk() -> None:
    pause, resume, seal = BatchPaused(**NOW), BatchResumed(**NOW), BatchSealed(**NOW)
    ours = recorded(BATCH, [started(), pause, resume])
    theirs = recorded(OTHER, [started(owner="umbrella"), pause, resume, seal], after=10)
    rows = ReplayedRows()
    rows.apply([*ours[:2], *theirs[:2]])

    rows.apply([theirs[2], theirs[3], ours[2]])  # resume, seal of theirs, resume of ours

    ours_row, theirs_row = rows.batches[BATCH], rows.batches[OTHER]
    assert (ours_row.state, ours_row.sealed_at, ours_row.paused) == ("open", None, False)
    assert (theirs_row.state, theirs_row.sealed_at) == ("sealed", later(9))


def test_a_batch_is_resumed_also_after_another_was_paused_in_an_earlier_fold() -> None:
    pause, resume = BatchPaused(**NOW), BatchResumed(**NOW)
    fold_changes(recorded(OTHER, [started(owner="umbrella"), pause, resume, pause])[2:])

    row = replay(recorded(BATCH, [started(), pause, resume])).batches[BATCH]

    assert row.paused is False


# Nothing mutable is reachable twice.


def _mutables(value: Any) -> Iterator[Any]:
    """Return every mutable object reachable from the value."""
    if isinstance(value, msgspec.Struct):
        if not value.__struct_config__.frozen:
            yield value
        for name in value.__struct_fields__:
            yield from _mutables(getattr(value, name))
    elif isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _mutables(item)
    elif isinstance(value, (list, tuple, set, frozenset)):
        if isinstance(value, (list, set)):
            yield value
        for item in value:
            yield from _mutables(item)
    elif isinstance(value, bytearray):
        yield value


def _shared(one: Any, other: Any) -> list[Any]:
    known = {id(found) for found in _mutables(one)}
    return [found for found in _mutables(other) if id(found) in known]


def _read_twice(event: DomainEvent) -> tuple[Any, Any]:
    """The event as two readers of the log get it: nothing of one is in the other."""
    topic, state = CODEC.encode(event)
    return CODEC.decode(topic, state)[0], CODEC.decode(topic, state)[0]


@pytest.mark.parametrize("event", EXAMPLES, ids=topic_of)
def test_an_event_read_twice_shares_nothing_mutable(event: DomainEvent) -> None:
    one, other = _read_twice(event)

    assert _shared(one, other) == []


@pytest.mark.parametrize("event", EXAMPLES, ids=topic_of)
def test_the_changes_of_an_event_share_nothing_mutable_with_it_or_with_those_of_another(
    event: DomainEvent,
) -> None:
    one, other = (
        RecordedEvent(id, 2, 7, e) for id, e in zip((FILE, OTHER), _read_twice(event), strict=True)
    )
    changes, again, others = row_changes(one), row_changes(one), row_changes(other)

    assert _shared(changes, others) == []
    assert _shared(changes, again) == []
    assert _shared(one, changes) == []


@pytest.mark.parametrize("event", EXAMPLES, ids=topic_of)
def test_a_fold_of_two_streams_shares_nothing_mutable_between_their_rows(
    event: DomainEvent,
) -> None:
    one, other = _read_twice(event)
    folded = fold_changes([RecordedEvent(FILE, 2, 7, one), RecordedEvent(OTHER, 2, 8, other)])
    rows = [
        columns
        for changes in folded.tables.values()
        for columns in (*changes.created.values(), *changes.updated.values())
    ]

    for index, columns in enumerate(rows):
        for later_columns in rows[index + 1 :]:
            assert _shared(columns, later_columns) == []
        assert _shared((one, other), columns) == []


@settings(deadline=None, max_examples=50)
@given(upload_histories(), upload_histories(path="b.bin"))
def test_two_uploads_share_nothing_mutable(one: list[Any], other: list[Any]) -> None:
    uploads = []
    for id, history in ((FILE, one), (OTHER, other)):
        upload = Upload.begin(id, history[0])
        for event in history[1:]:
            upload = upload.evolve(event)
        uploads.append(upload)

    assert _shared(*uploads) == []


@settings(deadline=None, max_examples=50)
@given(batch_histories(), batch_histories())
def test_two_batches_share_nothing_mutable(one: list[BatchEvent], other: list[BatchEvent]) -> None:
    batches = []
    for id, history in ((BATCH, one), (OTHER, other)):
        batch = Batch.begin(id, history[0])
        for event in history[1:]:
            batch = batch.evolve(event)
        batches.append(batch)

    assert _shared(*batches) == []


def test_a_decision_copies_the_numbers_and_results_that_it_is_given() -> None:
    counts = {UploadState.COMPLETED: 1}
    results, artifacts = {"checksum": {"pages": [1, 2]}}, {"thumbnail": "a"}
    batch = Batch(id=BATCH, version=1, owner="acme", started_at=NOON)
    sealed = batch.evolve(BatchSealed(**NOW))

    progressed = batch.record_progress(counts, bytes_received=1, bytes_total=1, through=1, **NOW)
    completed = sealed.complete(counts, **NOW)
    succeeded = processing().succeed_attempt(
        1, results=results, artifacts=artifacts, duration=1.0, **NOW
    )

    assert _shared((counts, results, artifacts), (progressed, completed, succeeded)) == []


# No module keeps what it could hand out.


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield import_module(found.name)


# Decisions, evolution and projection: values in, values out.
_PURE = [
    *_modules(domain),
    application.projected_columns,
    application.projection,
    application.orchestrator,
    application.tracked_batches,
    application.append,
    application.views,
]


@pytest.mark.parametrize("module", _PURE, ids=lambda module: module.__name__)
def test_a_module_that_decides_or_folds_keeps_nothing_mutable(module: ModuleType) -> None:
    kept = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("__") and list(_mutables(value))
    }

    assert kept == {}


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Return the functions defined in the module, methods included."""
    holders = [module, *(value for value in vars(module).values() if isinstance(value, type))]
    for holder in holders:
        for value in vars(holder).values():
            function = getattr(value, "__func__", value)
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield function


@pytest.mark.parametrize("module", _PURE, ids=lambda module: module.__name__)
def test_a_function_that_decides_or_folds_has_no_mutable_default(module: ModuleType) -> None:
    for function in _functions(module):
        defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        assert list(_mutables(defaults)) == [], function.__qualname__
