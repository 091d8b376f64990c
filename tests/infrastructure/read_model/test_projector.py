from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from domain.batch.events import BatchEvent
from domain.upload.events import FileProgressed, UploadEvent
from infrastructure.postgres.connection import connect
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.postgres.locks import PROJECTOR_LOCK
from infrastructure.read_model.projector import ProjectionVersionMismatch, connect_writer, project
from infrastructure.read_model.tables import LIVE
from tests.builders import (
    ALICE,
    NOON,
    attempt,
    batch_histories,
    failure,
    queued,
    received,
    registered,
    started,
    upload_histories,
)
from tests.infrastructure.read_model.support import (
    ReadModel,
    open_read_model,
    projecting,
    record_batch,
    rows_in,
)
from tests.support import eventually, run, tamper


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(upload_histories(), min_size=1, max_size=6), batch_histories(), st.randoms())
def test_stored_rows_are_what_the_log_folds_to(
    database_url: str,
    uploads: list[list[UploadEvent]],
    batch: list[BatchEvent],
    shuffle: random.Random,
) -> None:
    async def compare() -> None:
        async with open_read_model(database_url) as model:
            histories: list[list[Any]] = [*uploads, list(batch)]
            lives = [(uuid4(), list(events)) for events in histories]
            while lives:  # their events interleave
                stream, events = shuffle.choice(lives)
                await model.record(stream, events.pop(0))
                lives = [life for life in lives if life[1]]
                if shuffle.random() < 0.2:
                    await model.catch_up()
            assert await model.catch_up() == await model.log.head()

            assert rows_in(database_url) == await model.replayed()

    run(compare())


async def test_a_projector_follows_the_log_and_announces_each_position(
    database_url: str, model: ReadModel
) -> None:
    async with projecting(model):
        heard: list[str] = []
        model.listener.subscribe(READ_MODEL, heard.append)
        await record_batch(model, "a", "b")
        position = await model.record(uuid4(), started())

        await model.queries.wait_for(position, timeout=60)
        await eventually(lambda: str(position) in heard)
        assert rows_in(database_url) == await model.replayed()


async def test_two_projectors_never_apply_an_event_twice(
    database_url: str, model: ReadModel
) -> None:
    connections = [await connect_writer(database_url, name="test") for _ in range(3)]
    done = asyncio.Event()

    async def keep_projecting(connection: psycopg.AsyncConnection) -> None:
        while not done.is_set():
            await project(connection, model.log, LIVE, size=3)

    async with asyncio.TaskGroup() as tasks:
        for connection in connections:
            tasks.create_task(keep_projecting(connection))
        for _ in range(10):
            await record_batch(model, "a", "b", "c")
        done.set()
    await model.catch_up()
    for connection in connections:
        await connection.close()

    # A creation applied twice would have met the primary key.
    assert rows_in(database_url) == await model.replayed()


async def test_one_projector_works_and_the_next_takes_over_when_it_is_gone(
    model: ReadModel,
) -> None:
    async with projecting(model):
        async with projecting(model):
            await model.queries.wait_for(await model.record(uuid4(), started()), timeout=60)
        position = await model.record(uuid4(), started())
        await model.queries.wait_for(position, timeout=60)


async def test_a_projector_that_stands_still_does_not_keep_the_next_from_working(
    database_url: str, model: ReadModel
) -> None:
    timeouts = {"idle_session_timeout": "2s"}
    async with await connect(database_url, name="projector", settings=timeouts) as frozen:
        # It was the leader, and then its machine was suspended.
        await PROJECTOR_LOCK.acquire(frozen)
        async with projecting(model):
            position = await model.record(uuid4(), started())
            await model.queries.wait_for(position, timeout=60)


async def test_a_projector_outlives_the_loss_of_its_connections(
    database_url: str, model: ReadModel
) -> None:
    async with projecting(model) as task:
        for _ in range(4):
            await record_batch(model, "a", "b")
            await eventually(lambda: cut(database_url))
        position = await model.record(uuid4(), started())
        await model.queries.wait_for(position, timeout=60)

        assert not task.done()
        assert rows_in(database_url) == await model.replayed()


async def test_an_error_message_that_no_row_can_hold_does_not_stop_the_projection(
    model: ReadModel,
) -> None:
    upload, what = uuid4(), failure("bad \0 byte", permanent=True)
    failed = what.as_event(1, duration=0.1, retry_at=None, at=NOON, by=ALICE)
    await model.record(upload, registered(), received(), queued(), attempt(), failed)
    await model.catch_up()

    row = await model.queries.upload(upload, owner="acme")
    assert row.error == "bad \ufffd byte"


async def test_a_row_that_was_removed_by_hand_is_reported_and_stops_nothing(
    database_url: str, model: ReadModel
) -> None:
    batch = await record_batch(model, "a")
    upload = await only_upload(model, batch)
    tamper(database_url, "DELETE FROM read_model.uploads WHERE id = %s", upload)
    await model.record(upload, step(1))
    other = await record_batch(model, "b")

    with capture_logs() as logs:
        await model.catch_up()

    assert [entry["rows"] for entry in logs if "missing" in entry["event"]] == [1]
    assert (await model.queries.batch(other, owner="acme")).id == other


async def test_rows_of_another_version_of_the_code_are_left_alone(
    database_url: str, model: ReadModel
) -> None:
    await record_batch(model, "a")
    tamper(database_url, "UPDATE projections SET version = version + 1")

    with pytest.raises(ProjectionVersionMismatch):
        await model.catch_up()

    assert await model.queries.position() == 0
    assert rows_in(database_url).batches == {}


async def test_progress_that_came_meanwhile_is_one_row_at_its_last_position(
    model: ReadModel,
) -> None:
    batch = await record_batch(model, "a")
    upload = await only_upload(model, batch)
    for done in range(1, 51):
        position = await model.record(upload, step(done))
    await model.catch_up()

    row = await model.queries.upload(upload, owner="acme")
    assert (row.percent, row.position, row.version) == (50.0, position, 54)


def cut(url: str) -> int:
    """Ends the connections of projectors; how many there were."""
    with psycopg.connect(url, autocommit=True) as connection:
        return connection.execute(
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"
            " WHERE application_name = 'uptrail-projector' AND datname = current_database()"
        ).rowcount


def step(done: int) -> FileProgressed:
    at = NOON + timedelta(seconds=done)
    return FileProgressed(
        at=at, by=ALICE, phase="checksum", attempt=1, done=done, total=100, percent=float(done)
    )


async def only_upload(model: ReadModel, batch: UUID) -> UUID:
    await model.catch_up()
    page = await model.queries.uploads(batch, owner="acme")
    return page.items[0].id
