"""The event log as use cases see it: aggregates, streams, positions and timestamps."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest
from msgspec.structs import replace

from application.append import Append, append_to_stream
from application.errors import Conflict, NotFound, Unavailable
from domain.batch.events import BatchProgressed, BatchSealed
from infrastructure.event_store import event_log as log_module
from infrastructure.event_store.codec import UnreadableEvent
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.pool import make_pool
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
from tests.harness import open_log
from tests.infrastructure.event_store.examples import CAUSE
from tests.infrastructure.event_store.log_support import done_in, new_stream, step, steps
from tests.support import eventually

SEALED = BatchSealed(at=NOON, by=ALICE)


def progress(number: int) -> BatchProgressed:
    return BatchProgressed(
        at=NOON, by=ALICE, counts={}, bytes_received=number, bytes_total=500, percent=0, through=1
    )


async def test_an_aggregate_is_what_its_events_make_of_it(log: PostgresEventLog) -> None:
    await log.append(append_to_stream(FILE, 0, registered(), received()))
    await log.append(append_to_stream(FILE, 2, queued()))
    await log.append(append_to_stream(BATCH, 0, started()))
    assert await log.upload(FILE) == given(registered(), received(), queued())
    assert await log.batch(BATCH) == given_batch(started())

    log.forget(FILE, BATCH)

    assert await log.upload(FILE) == given(registered(), received(), queued())
    assert await log.batch(BATCH) == given_batch(started())


async def test_an_absent_aggregate_or_one_of_another_kind_is_not_found(
    log: PostgresEventLog,
) -> None:
    await log.append(append_to_stream(FILE, 0, registered()))
    for find, id in ((log.upload, BATCH), (log.batch, BATCH), (log.batch, FILE)):
        with pytest.raises(NotFound):
            await find(id)


async def test_a_stale_aggregate_is_forgotten_when_its_append_conflicts(
    database_url: str, log: PostgresEventLog
) -> None:
    async with open_log(database_url) as elsewhere:
        await log.append(append_to_stream(FILE, 0, registered()))
        await elsewhere.append(append_to_stream(FILE, 1, received()))
        stale = await log.upload(FILE)
        with pytest.raises(Conflict):
            await log.append(append_to_stream(FILE, stale.version, received()))

        assert (await log.upload(FILE)).version == 2


async def test_appends_of_other_processes_become_visible(
    database_url: str, log: PostgresEventLog
) -> None:
    async with open_log(database_url) as elsewhere:
        await log.append(append_to_stream(BATCH, 0, started()))
        await elsewhere.append(append_to_stream(BATCH, None, SEALED))

        async def sealed() -> bool:
            return (await log.batch(BATCH)).sealed

        await eventually(sealed)


async def test_a_snapshot_equals_a_full_replay(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_log(database_url) as log:
        await log.append(append_to_stream(BATCH, 0, started()))
        for number in range(250):
            await log.append(append_to_stream(BATCH, None, progress(number)))
            await log.batch(BATCH)
        replayed = given_batch(started(), *(progress(number) for number in range(250)))
        assert await log.batch(BATCH) == replayed
    assert snapshots(database_url) == [100, 200]

    async with open_log(database_url) as log:
        with psycopg.connect(database_url) as connection:
            connection.execute("DELETE FROM stored_events WHERE originator_version <= 200")
        assert await log.batch(BATCH) == replayed


def snapshots(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT originator_version FROM stored_snapshots ORDER BY originator_version"
        ).fetchall()
    return [row[0] for row in rows]


async def test_a_snapshot_of_another_shape_is_passed_over(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO stored_snapshots VALUES (%s, 1, 'batch.snapshot.00000000', '{}')", (BATCH,)
        )

    async with open_log(database_url) as log:
        await log.append(append_to_stream(BATCH, 0, started()))
        log.forget(BATCH)
        assert await log.batch(BATCH) == given_batch(started())


async def test_a_stream_longer_than_a_page_is_loaded_whole(
    log: PostgresEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "EVENTS_PER_PAGE", 3)

    await log.append(
        append_to_stream(BATCH, 0, started(), *(progress(number) for number in range(8)))
    )
    log.forget(BATCH)
    assert (await log.batch(BATCH)).version == 9


async def test_memory_of_aggregates_is_bounded(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "MAX_CACHED_AGGREGATES", 10)

    async with open_log(database_url) as log:
        for _ in range(30):
            await log.append(append_to_stream(new_stream(), 0, registered()))
        await log.append(append_to_stream(FILE, 0, registered()))
        assert len(log._remembered) == 10
        assert await log.upload(FILE) == given(registered())


async def test_streams_and_the_log_are_read_in_parts(log: PostgresEventLog) -> None:
    one_stream, other = new_stream(), new_stream()
    first = await log.append(Append((steps(one_stream, 0, 1, 2),), cause=CAUSE))
    await log.append(append_to_stream(other, 0, registered()))
    last = await log.append(Append((steps(one_stream, 2, 3, 4),)))

    stream = await log.stream(one_stream)
    assert done_in(list(stream), one_stream) == [1, 2, 3, 4]
    assert [item.version for item in await log.stream(one_stream, after=1, limit=2)] == [2, 3]
    upto = await log.stream(one_stream, upto_position=first.position)
    assert [(item.version, item.cause) for item in upto] == [(1, CAUSE), (2, CAUSE)]

    assert await log.head() == last.position
    everything = await log.read(0, limit=100)
    assert [item.position for item in everything] == sorted(item.position for item in everything)
    assert len(everything) == 5
    assert list(await log.read(first.position, limit=1)) == list(everything[2:3])
    named = await log.read(0, limit=100, topics=["upload.registered"])
    assert [item.stream for item in named] == [other]
    assert await log.read(last.position, limit=100) == []


async def test_a_moment_finds_its_position_although_neighbours_lie_out_of_order(
    log: PostgresEventLog,
) -> None:
    seconds = [*range(40), 43, 40, 42, 41, *range(44, 90)]

    assert await log.position_at(NOON) == 0
    events = [replace(step(number), at=later(number)) for number in seconds]
    await log.append(append_to_stream(new_stream(), 0, *events))
    everything = await log.read(0, limit=1000)
    for moment in (-1, 0, 17, 40, 41, 42, 43, 44.5, 89, 500):
        upto = [item.position for item in everything if item.event.at <= later(moment)]
        assert await log.position_at(later(moment)) == max(upto, default=0), moment
    assert await log.position_at(NOON - timedelta(days=400)) == 0


async def test_an_event_of_an_unknown_topic_is_reported_with_its_place(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO stored_events VALUES (%s, 1, 'upload.teleported', '{}')", (FILE,)
        )

    async with open_log(database_url) as log:
        with pytest.raises(UnreadableEvent, match=f"position 1, {FILE} version 1.*teleported"):
            await log.upload(FILE)


async def test_reading_without_a_server_is_unavailable(database_url: str) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    async with GroupCommitter(database_url) as committer:
        pool = make_pool(nowhere, name="test", min_size=0)
        pool.timeout = 0.2
        async with pool:
            with pytest.raises(Unavailable):
                await PostgresEventLog(pool, committer).head()
