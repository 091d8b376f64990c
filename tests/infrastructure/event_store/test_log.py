"""The event log as use cases see it: aggregates, streams, positions and timestamps."""

from __future__ import annotations

import psycopg
import pytest

from application.append import append_to_stream
from application.errors import Unavailable
from infrastructure.event_store import event_log as log_module
from infrastructure.event_store.codec import UnreadableEvent
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import (
    AggregateCache,
    CachedAggregate,
    PostgresEventLog,
)
from infrastructure.postgres.pool import make_pool
from tests.builders import (
    BATCH,
    FILE,
    given,
    given_batch,
    received,
    registered,
    started,
)
from tests.contracts.event_log import EventLogContract, OpenLog, progress
from tests.harness import open_log
from tests.infrastructure.event_store.log_support import new_stream


class TestPostgresEventLog(EventLogContract):
    @pytest.fixture
    def open_log(self, database_url: str) -> OpenLog:
        return lambda: open_log(database_url)


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


def test_a_newer_aggregate_in_memory_is_not_replaced_by_an_older_one() -> None:
    older, newer = given(registered()), given(registered(), received())
    cache = AggregateCache(10)

    cache.put(CachedAggregate(newer, at=1.0, snapshot=0))
    cache.put(CachedAggregate(older, at=2.0, snapshot=0))  # by a load that began before

    found = cache.get(FILE)
    assert found is not None
    assert found.aggregate == newer


async def test_a_log_without_its_secret_of_ids_does_not_open(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("DELETE FROM derived_ids")

    with pytest.raises(LookupError, match="derived_ids"):
        async with open_log(database_url):
            pass


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
