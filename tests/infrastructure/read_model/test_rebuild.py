from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine

from application.append import RecordedEvent
from application.projection import VERSION
from application.views import replay
from domain.batch.events import BatchPaused, BatchResumed, BatchSealed
from infrastructure.event_store.codec import CODEC
from infrastructure.postgres import listener
from infrastructure.postgres.connection import connect
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.postgres.schema import MIGRATIONS, NewerDatabase, migrate
from infrastructure.read_model import rebuild as rebuilding
from infrastructure.read_model.rebuild import rebuild, rebuild_if_outdated, verify
from tests.builders import ALICE, later, recorded, started
from tests.infrastructure.read_model.support import (
    ReadModel,
    open_read_model,
    projecting,
    record_batch,
    rows_in,
)
from tests.support import eventually, tamper


async def test_rebuilt_rows_equal_the_live_ones_in_a_new_epoch(
    database_url: str, model: ReadModel
) -> None:
    for _ in range(3):
        await record_batch(model, "a", "b", "c")
    position = await model.catch_up()
    before, epoch = rows_in(database_url), await model.queries.epoch()

    rebuilt = await rebuild(database_url, model.log)

    assert rebuilt.position == position == await model.queries.position()
    assert rows_in(database_url) == before
    assert rebuilt.epoch == await model.queries.epoch() != epoch
    assert schemas(database_url) == ["read_model"]


async def test_rows_that_were_changed_by_hand_are_put_right(
    database_url: str, model: ReadModel
) -> None:
    await record_batch(model, "a")
    await model.catch_up()
    before = rows_in(database_url)
    tamper(database_url, "UPDATE read_model.uploads SET path = 'forged'")
    tamper(database_url, "DELETE FROM read_model.attempts")

    await rebuild(database_url, model.log)

    assert rows_in(database_url) == before


async def test_the_projector_and_readers_go_on_through_a_swap(
    database_url: str, model: ReadModel
) -> None:
    async with projecting(model):
        known = await record_batch(model, "a", "b")
        await model.queries.wait_for(await model.log.head(), timeout=60)
        done = asyncio.Event()

        async def keep_asking() -> int:
            answers = 0
            while not done.is_set():
                assert (await model.queries.batch(known, owner="acme")).id == known
                page = await model.queries.uploads(known, owner="acme")
                assert [row.path for row in page.items] == ["a", "b"]
                assert len(await model.history.of_batch(known, owner="acme")) >= 9
                answers += 1
            return answers

        async def keep_recording() -> None:
            while not done.is_set():
                await record_batch(model, "x", "y")

        async with asyncio.TaskGroup() as tasks:
            readers = [tasks.create_task(keep_asking()) for _ in range(3)]
            tasks.create_task(keep_recording())
            positions = [(await rebuild(database_url, model.log)).position for _ in range(4)]
            done.set()

        assert positions == sorted(positions)
        assert all(reader.result() for reader in readers)
        await record_batch(model, "after")
        await model.queries.wait_for(await model.log.head(), timeout=60)
        assert rows_in(database_url) == await model.replayed()


async def test_a_reader_that_holds_the_tables_delays_the_swap_and_breaks_nothing(
    database_url: str, model: ReadModel
) -> None:
    await record_batch(model, "a")
    await model.catch_up()
    reader = await connect(database_url, name="test")
    async with reader.transaction():
        await reader.execute("SELECT FROM read_model.uploads")
        swap = asyncio.create_task(rebuild(database_url, model.log))
        waiting, _ = await asyncio.wait([swap], timeout=1.0)
        await reader.execute("SELECT FROM read_model.batches")
    assert waiting == set()
    await swap
    await reader.close()

    assert rows_in(database_url) == await model.replayed()


async def test_rows_that_lag_behind_are_rebuilt_to_the_end_of_the_log(
    database_url: str, model: ReadModel
) -> None:
    await record_batch(model, "a")
    await model.catch_up()
    await record_batch(model, "b")

    rebuilt = await rebuild(database_url, model.log)

    assert rebuilt.position == await model.queries.position() == await model.log.head()
    assert rows_in(database_url) == await model.replayed()


async def test_a_rebuild_is_announced_to_readers(
    database_url: str, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "POLL_INTERVAL", 86_400.0)
    await record_batch(model, "a")
    position = await model.catch_up()
    wakeups = model.listener.wakeups(READ_MODEL)
    await eventually(lambda: wakeups.position == position)
    waiting = asyncio.create_task(wakeups.wait(position))

    await rebuild(database_url, model.log)

    async with asyncio.timeout(20):
        await waiting


async def test_live_rows_stand_still_while_others_take_their_place(
    database_url: str, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projector comes between the moment at which the position is read and the swap."""
    await record_batch(model, "a")
    await model.catch_up()
    projecting_meanwhile: list[asyncio.Task[int]] = []
    project = rebuilding.project

    async def project_after_a_projector(
        *arguments: Any, upto: int | None = None, **more: Any
    ) -> int:
        if upto is not None:
            await record_batch(model, "b")
            task = asyncio.create_task(model.catch_up())
            projecting_meanwhile.append(task)

            async def is_over_or_waits() -> bool:
                return task.done() or await waiting_sessions(database_url) > 0

            await eventually(is_over_or_waits)
        return await project(*arguments, upto=upto, **more)

    monkeypatch.setattr(rebuilding, "project", project_after_a_projector)

    await rebuild(database_url, model.log)
    await asyncio.gather(*projecting_meanwhile)

    assert await model.queries.position() == await model.log.head()
    assert rows_in(database_url) == await model.replayed()


async def waiting_sessions(url: str) -> int:
    async with await connect(url, name="observer") as observer:
        cursor = await observer.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def test_a_history_that_waits_for_a_swap_is_of_the_new_rows(
    database_url: str, model: ReadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of this batch are written by the transaction that swaps the tables."""
    reading: list[asyncio.Task[Any]] = []
    batches: list[UUID] = []
    swap, record = rebuilding._swap, rebuilding._record

    async def swap_after_another_batch(*arguments: Any) -> Any:
        batches.append(await record_batch(model, "a"))
        await model.catch_up()
        return await swap(*arguments)

    async def record_while_a_reader_waits(*arguments: Any) -> Any:
        reading.append(asyncio.create_task(model.history.of_batch(batches[0], owner="acme")))

        async def is_over_or_waits() -> bool:
            return reading[0].done() or await waiting_sessions(database_url) > 0

        await eventually(is_over_or_waits)
        return await record(*arguments)

    monkeypatch.setattr(rebuilding, "_swap", swap_after_another_batch)
    monkeypatch.setattr(rebuilding, "_record", record_while_a_reader_waits)

    await rebuild(database_url, model.log)

    assert len(await reading[0]) == 5


async def test_rows_made_by_an_earlier_version_are_rebuilt_at_start_and_only_then(
    database_url: str, model: ReadModel
) -> None:
    await record_batch(model, "a")
    assert await rebuild_if_outdated(database_url, model.log) is None
    tamper(database_url, "UPDATE projections SET version = %s", VERSION - 1)

    rebuilt = await asyncio.gather(
        *(rebuild_if_outdated(database_url, model.log) for _ in range(3))
    )

    assert len([one for one in rebuilt if one is not None]) == 1
    assert rows_in(database_url) == await model.replayed()
    assert await model.queries.position() == await model.log.head()


async def test_rows_made_by_a_later_version_are_left_alone(
    database_url: str, model: ReadModel
) -> None:
    await record_batch(model, "a")
    await model.catch_up()
    tamper(database_url, "UPDATE projections SET version = %s", VERSION + 1)
    before = rows_in(database_url)

    with pytest.raises(NewerDatabase):
        await rebuild_if_outdated(database_url, model.log)

    assert rows_in(database_url) == before


async def test_an_empty_read_model_needs_no_migration_for_a_new_event_type(
    database_url: str,
) -> None:
    tamper(database_url, "UPDATE projections SET version = %s", VERSION - 1)

    migrate(database_url)

    async with open_read_model(database_url) as model:
        await record_batch(model, "a")
        await model.catch_up()
        assert len(rows_in(database_url).batches) == 1
        tamper(database_url, "UPDATE projections SET version = %s", VERSION - 1)
        migrate(database_url)  # changes nothing: these rows are to be rebuilt
        assert await rebuild_if_outdated(database_url, model.log) is not None


async def test_a_rebuild_that_is_stopped_leaves_the_live_rows_and_nothing_else(
    database_url: str, monkeypatch: pytest.MonkeyPatch, model: ReadModel
) -> None:
    monkeypatch.setattr(rebuilding, "MAX_SWAP_TRIES", 1_000_000)

    await record_batch(model, "a")
    await model.catch_up()
    before = rows_in(database_url)
    reader = await connect(database_url, name="test")
    async with reader.transaction():
        await reader.execute("SELECT FROM read_model.uploads")
        stuck = asyncio.create_task(rebuild(database_url, model.log))
        await asyncio.wait([stuck], timeout=0.7)
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck
    await reader.close()

    assert rows_in(database_url) == before
    assert schemas(database_url) == ["read_model"]


async def test_a_database_of_the_previous_version_with_foreign_values_is_rebuilt_at_the_next_start(
    empty_database_url: str,
) -> None:
    ours, theirs = uuid4(), uuid4()
    paused, resumed = BatchPaused(at=later(2), by=ALICE), BatchResumed(at=later(3), by=ALICE)
    sealed = BatchSealed(at=later(4), by=ALICE)
    log = [
        *recorded(ours, [started(owner="acme"), paused, resumed]),
        *recorded(theirs, [started(owner="umbrella"), paused, resumed, sealed], after=3),
    ]
    upgrade_to("0013", empty_database_url)
    with psycopg.connect(empty_database_url) as connection:
        for event in log:
            write_event(connection, event)
        for id, owner in ((ours, "acme"), (theirs, "umbrella")):
            # What version 3 left: a batch that was resumed shows what became of another one.
            connection.execute(FOREIGN_ROW, {"id": id, "owner": owner, "position": len(log)})
        connection.execute("UPDATE projections SET version = 3")
        connection.execute(
            "UPDATE notification_tracking SET notification_id = %s"
            " WHERE application_name = 'read_model'",
            (len(log),),
        )

    migrate(empty_database_url)

    async with open_read_model(empty_database_url) as model:
        assert await rebuild_if_outdated(empty_database_url, model.log) is not None
        assert (await verify(empty_database_url, model.log)).sound
        assert await rebuild_if_outdated(empty_database_url, model.log) is None
    rows = rows_in(empty_database_url)
    assert (rows.batches[ours].state, rows.batches[ours].sealed_at) == ("open", None)
    assert (rows.batches[ours].paused, rows.batches[ours].owner) == (False, "acme")
    assert (rows.batches[theirs].state, rows.batches[theirs].sealed_at) == ("sealed", later(4))
    assert rows == replay(log)


def test_an_empty_database_of_the_previous_version_needs_no_rebuild(
    empty_database_url: str,
) -> None:
    upgrade_to("0013", empty_database_url)

    migrate(empty_database_url)

    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT version FROM projections").fetchall() == [(VERSION,)]


FOREIGN_ROW = """
INSERT INTO read_model.batches (id, owner, label, state, paused, pipeline, priority, metadata,
  uploads, counts, bytes_received, bytes_total, percent, started_at, started_by, sealed_at,
  updated_at, version, position)
VALUES (%(id)s, %(owner)s, '', 'sealed', true, 'default', 0, '{}', 0, '{}', 0, 0, 0,
  now(), 'key:alice', now(), now(), 3, %(position)s)"""


def upgrade_to(revision: str, url: str) -> None:
    """Make the database as an earlier version did."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=NullPool
    )
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def write_event(connection: psycopg.Connection, event: RecordedEvent) -> None:
    topic, state = CODEC.encode(event.event)
    connection.execute(
        "INSERT INTO stored_events (originator_id, originator_version, topic, state,"
        " notification_id) VALUES (%s, %s, %s, %s, %s)",
        (event.stream, event.version, topic, state, event.position),
    )


def schemas(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'read_model%' ORDER BY 1"
        )
        return [row[0] for row in rows]
