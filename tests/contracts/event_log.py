"""Contract of every event log; the tests of each adapter run all of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TypeAlias
from uuid import UUID

import pytest
from msgspec.structs import replace

from application.append import (
    Append,
    AppendCondition,
    IdempotencyRecord,
    StreamAppend,
    append_to_stream,
)
from application.errors import AlreadyHandled, Conflict, IdempotencyKeyReused, NotFound
from application.ports.event_log import EventLog, Origin
from domain.batch.events import BatchProgressed, BatchSealed
from infrastructure.event_store import event_log as log_module
from tests.builders import (
    ALICE,
    BATCH,
    FILE,
    NOON,
    given,
    given_batch,
    later,
    queued,
    received,
    registered,
    started,
)
from tests.infrastructure.event_store.examples import CAUSE
from tests.infrastructure.event_store.log_support import done_in, new_stream, step, steps
from tests.support import eventually

OpenLog: TypeAlias = Callable[[], AbstractAsyncContextManager[EventLog]]

A, B = UUID(int=1), UUID(int=2)
SEALED = BatchSealed(at=NOON, by=ALICE)
SEALING = frozenset({"batch.sealed", "batch.cancelled"})


def progress(number: int) -> BatchProgressed:
    return BatchProgressed(
        at=NOON, by=ALICE, counts={}, bytes_received=number, bytes_total=500, percent=0, through=1
    )


class EventLogContract:
    """Subclasses give `open_log`, which opens the log of one more process each time."""

    @pytest.fixture
    def open_log(self) -> OpenLog:
        raise NotImplementedError

    async def test_an_aggregate_is_what_its_events_make_of_it(self, open_log: OpenLog) -> None:
        async with open_log() as log:
            await log.append(append_to_stream(FILE, 0, registered(), received()))
            await log.append(append_to_stream(FILE, 2, queued()))
            await log.append(append_to_stream(BATCH, 0, started()))
            assert await log.upload(FILE) == given(registered(), received(), queued())
            assert await log.batch(BATCH) == given_batch(started())

            log.forget(FILE, BATCH)

            assert await log.upload(FILE) == given(registered(), received(), queued())
            assert await log.batch(BATCH) == given_batch(started())

    async def test_an_absent_aggregate_or_one_of_another_kind_is_not_found(
        self, open_log: OpenLog
    ) -> None:
        async with open_log() as log:
            await log.append(append_to_stream(FILE, 0, registered()))
            for find, id in ((log.upload, BATCH), (log.batch, BATCH), (log.batch, FILE)):
                with pytest.raises(NotFound):
                    await find(id)

    async def test_a_stale_aggregate_is_forgotten_when_its_append_conflicts(
        self, open_log: OpenLog
    ) -> None:
        async with open_log() as log, open_log() as elsewhere:
            await log.append(append_to_stream(FILE, 0, registered()))
            await elsewhere.append(append_to_stream(FILE, 1, received()))
            stale = await log.upload(FILE)
            with pytest.raises(Conflict):
                await log.append(append_to_stream(FILE, stale.version, received()))

            assert (await log.upload(FILE)).version == 2

    async def test_a_guard_is_forgotten_when_its_condition_is_violated(
        self, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(log_module, "CACHE_FRESH_SECONDS", 3600.0)
        async with open_log() as log, open_log() as elsewhere:
            await log.append(append_to_stream(BATCH, 0, started()))
            await elsewhere.append(append_to_stream(BATCH, 1, SEALED))
            joining = StreamAppend(FILE, 0, (registered(),))
            with pytest.raises(Conflict):
                await log.append(
                    Append((joining,), conditions=(AppendCondition(BATCH, 1, SEALING),))
                )

            assert (await log.batch(BATCH)).sealed

    async def test_own_events_are_not_applied_over_those_of_another_process(
        self, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(log_module, "CACHE_FRESH_SECONDS", 3600.0)
        async with open_log() as log, open_log() as elsewhere:
            await log.append(append_to_stream(BATCH, 0, started()))
            await elsewhere.append(append_to_stream(BATCH, 1, SEALED))
            await log.append(append_to_stream(BATCH, None, progress(1)))

            assert await log.batch(BATCH) == given_batch(started(), SEALED, progress(1))

    async def test_appends_of_other_processes_become_visible(self, open_log: OpenLog) -> None:
        async with open_log() as log, open_log() as elsewhere:
            await log.append(append_to_stream(BATCH, 0, started()))
            await elsewhere.append(append_to_stream(BATCH, None, SEALED))

            async def sealed() -> bool:
                return (await log.batch(BATCH)).sealed

            await eventually(sealed)

    async def test_a_stream_longer_than_a_page_is_loaded_whole(
        self, open_log: OpenLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(log_module, "EVENTS_PER_PAGE", 3)
        async with open_log() as log:
            await log.append(
                append_to_stream(BATCH, 0, started(), *(progress(number) for number in range(8)))
            )
            log.forget(BATCH)
            assert (await log.batch(BATCH)).version == 9

    async def test_a_long_stream_is_loaded_from_its_snapshot(self, open_log: OpenLog) -> None:
        async with open_log() as log:
            await log.append(append_to_stream(BATCH, 0, started()))
            for number in range(150):
                await log.append(append_to_stream(BATCH, None, progress(number)))
                await log.batch(BATCH)
        async with open_log() as log:
            replayed = given_batch(started(), *(progress(number) for number in range(150)))
            assert await log.batch(BATCH) == replayed

    async def test_streams_and_the_log_are_read_in_parts(self, open_log: OpenLog) -> None:
        async with open_log() as log:
            one_stream, other = new_stream(), new_stream()
            first = await log.append(Append((steps(one_stream, 0, 1, 2),), cause=CAUSE))
            await log.append(append_to_stream(other, 0, registered()))
            last = await log.append(Append((steps(one_stream, 2, 3, 4),)))

            stream = await log.stream(one_stream)
            assert done_in(list(stream), one_stream) == [1, 2, 3, 4]
            middle = await log.stream(one_stream, after=1, limit=2)
            assert [item.version for item in middle] == [2, 3]
            upto = await log.stream(one_stream, upto_position=first.position)
            assert [(item.version, item.cause) for item in upto] == [(1, CAUSE), (2, CAUSE)]

            assert await log.head() == last.position
            everything = await log.read(0, limit=100)
            assert [item.position for item in everything] == sorted(
                item.position for item in everything
            )
            assert len(everything) == 5
            assert list(await log.read(first.position, limit=1)) == list(everything[2:3])
            named = await log.read(0, limit=100, topics=["upload.registered"])
            assert [item.stream for item in named] == [other]
            assert await log.read(last.position, limit=100) == []
            assert await log.versions([one_stream, B, other]) == {one_stream: 4, other: 1}
            assert await log.origin(other) == Origin("acme", BATCH)
            assert await log.origin(B) is None

    async def test_a_moment_finds_its_position_although_neighbours_lie_out_of_order(
        self, open_log: OpenLog
    ) -> None:
        seconds = [*range(40), 43, 40, 42, 41, *range(44, 90)]
        async with open_log() as log:
            assert await log.position_at(NOON) == 0
            events = [replace(step(number), at=later(number)) for number in seconds]
            await log.append(append_to_stream(new_stream(), 0, *events))
            everything = await log.read(0, limit=1000)
            for moment in (-1, 0, 17, 40, 41, 42, 43, 44.5, 89, 500):
                upto = [item.position for item in everything if item.event.at <= later(moment)]
                assert await log.position_at(later(moment)) == max(upto, default=0), moment
            assert await log.position_at(NOON - timedelta(days=400)) == 0

    async def test_an_append_is_recorded_whole_or_not_at_all(self, open_log: OpenLog) -> None:
        async with open_log() as log:
            await log.append(Append((steps(A, 0, 1),)))
            with pytest.raises(Conflict) as conflict:
                await log.append(Append((steps(B, 0, 1), steps(A, 0, 2))))

            refused = conflict.value
            assert (refused.stream, refused.expected, refused.actual) == (A, 0, 1)
            assert await log.versions([A, B]) == {A: 1}

    async def test_one_append_may_write_a_stream_twice_and_at_any_version(
        self, open_log: OpenLog
    ) -> None:
        async with open_log() as log:
            first = await log.append(Append((steps(A, 0, 1), steps(B, None, 7), steps(A, 1, 2))))
            then = await log.append(Append((steps(A, None, 3),)))

            assert (first.versions, then.versions) == ({A: 2, B: 1}, {A: 3})
            assert then.position > first.position

    async def test_a_condition_refuses_an_append_after_an_event_of_its_topics(
        self, open_log: OpenLog
    ) -> None:
        guarded = AppendCondition(BATCH, 1, SEALING)
        async with open_log() as log, open_log() as elsewhere:
            await log.append(append_to_stream(BATCH, 0, started()))
            await elsewhere.append(append_to_stream(BATCH, None, progress(1)))
            await log.append(Append((steps(A, 0, 1),), conditions=(guarded,)))
            await elsewhere.append(append_to_stream(BATCH, None, SEALED))
            with pytest.raises(Conflict):
                await log.append(Append((steps(A, 1, 2),), conditions=(guarded,)))
            assert await log.versions([A]) == {A: 1}

    async def test_of_two_conditions_on_one_stream_each_begins_at_its_own_version(
        self, open_log: OpenLog
    ) -> None:
        async with open_log() as log:
            await log.append(append_to_stream(BATCH, 0, started(), SEALED))
            other = frozenset({"batch.cancelled"})
            conditions = (AppendCondition(BATCH, 1, other), AppendCondition(BATCH, 2, SEALING))
            for number, expected in ((1, 0), (2, None)):  # by the fast path, and by the checked one
                write = steps(UUID(int=number), expected, 1)
                assert await log.append(Append((write,), conditions=conditions))

    async def test_a_command_sent_twice_gets_its_first_answer(self, open_log: OpenLog) -> None:
        command = new_stream()

        def answered(fingerprint: str, body: bytes) -> Append:
            record = IdempotencyRecord(command, "acme", fingerprint, body)
            return Append((StreamAppend(A, None, (step(1),)),), idempotency=record)

        async with open_log() as log, open_log() as elsewhere:
            first = await log.append(answered("same", b"first"))
            with pytest.raises(AlreadyHandled) as again:
                await elsewhere.append(answered("same", b"second"))
            with pytest.raises(IdempotencyKeyReused):
                await elsewhere.append(answered("other", b"third"))

            assert (again.value.body, again.value.position) == (b"first", first.position)
            assert await log.versions([A]) == {A: 1}
