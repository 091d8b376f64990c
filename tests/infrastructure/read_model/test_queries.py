from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from application.errors import NotFound, Unavailable
from application.ports.read_model import BadCursor
from domain.batch.events import BatchSealed
from domain.ids import upload_id_for
from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.listener import ChannelWakeups
from infrastructure.read_model.engine import make_engine, read_connection
from infrastructure.read_model.queries import (
    AfterBatch,
    AfterUpload,
    PostgresQueries,
    from_cursor,
    to_cursor,
)
from tests.builders import ALICE, BATCH, NOON, attempt, failure, later, registered, started
from tests.infrastructure.read_model.support import (
    ReadModel,
    projecting,
    record_batch,
)
from tests.support import eventually, with_database

PATHS = [f"photos/{number:02}.jpg" for number in range(7)]


async def test_pages_of_uploads_hold_each_once_in_the_order_of_their_paths(
    model: ReadModel,
) -> None:
    batch = await record_batch(model, *reversed(PATHS))
    await record_batch(model, "of another batch")
    head = await model.catch_up()

    seen, cursor = [], None
    while True:
        page = await model.queries.uploads(batch, owner="acme", cursor=cursor, limit=3)
        assert page.position == head
        seen += [upload.path for upload in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert seen == PATHS


async def test_uploads_can_be_asked_for_by_state(model: ReadModel) -> None:
    batch = await record_batch(model, "a", "b")
    await model.record(upload_id_for(batch, "c", b""), registered(batch=batch, path="c"))
    await model.catch_up()

    page = await model.queries.uploads(batch, owner="acme", state="registered")
    assert [upload.path for upload in page.items] == ["c"]
    assert (await model.queries.uploads(batch, owner="acme", state="x")).items == []


async def test_batches_come_newest_first_page_by_page(model: ReadModel) -> None:
    made = [await record_batch(model, at=later(second // 2)) for second in range(7)]
    await model.catch_up()

    seen, cursor = [], None
    while True:
        page = await model.queries.batches(owner="acme", cursor=cursor, limit=2)
        seen += [(row.started_at, row.id) for row in page.items]
        cursor = page.next
        if cursor is None:
            break
    assert {id for _, id in seen} == set(made)
    assert seen == sorted(seen, reverse=True)


async def test_batches_can_be_asked_for_by_state_and_label(model: ReadModel) -> None:
    holiday, work = (
        await record_batch(model, label="holiday"),
        await record_batch(model, label="work"),
    )
    await model.record(work, BatchSealed(at=NOON, by=ALICE))
    await model.catch_up()

    async def found(**which: str) -> list[object]:
        page = await model.queries.batches(owner="acme", **which)  # type: ignore[arg-type]
        return [row.id for row in page.items]

    assert await found(state="open") == [holiday]
    assert await found(label="work") == [work]
    assert await found(label="work", state="open") == []
    assert await found(label="a\0b") == []


async def test_a_query_finds_nothing_of_another_owner(model: ReadModel) -> None:
    batch = await record_batch(model, "a", owner="acme")
    upload = upload_id_for(batch, "a", b"")
    await model.catch_up()
    queries, history = model.queries, model.history

    assert (await queries.upload(upload, owner="acme")).path == "a"
    assert (await queries.upload(upload, owner=None)).path == "a"
    assert (await queries.batches(owner="globex")).items == []
    for question in (
        queries.batch(batch, owner="globex"),
        queries.uploads(batch, owner="globex"),
        queries.upload(upload, owner="globex"),
        queries.attempts(upload, owner="globex"),
        history.of_upload(upload, owner="globex"),
        history.of_batch(batch, owner="globex"),
        queries.batch(uuid4(), owner="acme"),
        queries.uploads(uuid4(), owner=None),
        queries.attempts(uuid4(), owner=None),
        history.of_upload(uuid4(), owner=None),
        history.of_batch(uuid4(), owner=None),
    ):
        with pytest.raises(NotFound):
            await question
    assert await history.of_everything(owner="globex") == []


async def test_attempts_are_listed_in_order(model: ReadModel) -> None:
    batch = await record_batch(model, "a")
    upload = upload_id_for(batch, "a", b"")
    what = failure("reset by peer")
    failed = what.as_event(1, duration=0.5, retry_at=later(2), at=NOON, by=ALICE)
    await model.record(upload, failed, attempt(2))
    waiting = await model.record(upload_id_for(batch, "b", b""), registered(batch=batch, path="b"))
    await model.catch_up()

    rows = await model.queries.attempts(upload, owner="acme")
    assert [(row.number, row.state, row.message) for row in rows] == [
        (1, "failed", "reset by peer"),
        (2, "running", None),
    ]
    assert waiting
    assert await model.queries.attempts(upload_id_for(batch, "b", b""), owner="acme") == []


async def test_a_writer_can_wait_to_read_what_it_wrote(model: ReadModel) -> None:
    async with projecting(model):
        for _ in range(5):
            batch = uuid4()
            position = await model.record(batch, started())
            await model.queries.wait_for(position, timeout=60)
            assert (await model.queries.batch(batch, owner="acme")).position == position


async def test_a_wait_for_an_absent_position_times_out(model: ReadModel) -> None:
    with pytest.raises(TimeoutError):
        await model.queries.wait_for(1, timeout=0.05)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "AAAA", "W10", to_cursor(AfterBatch(NOON, BATCH)), "WyJ1IiwxLDJd", "a=b"],
)
def test_a_cursor_that_was_not_given_out_is_refused(cursor: str) -> None:
    with pytest.raises(BadCursor):
        from_cursor(cursor, AfterUpload)


def test_a_forged_cursor_cannot_reach_the_database() -> None:
    with pytest.raises(BadCursor):
        from_cursor(to_cursor(AfterUpload("a\0b", uuid4())), AfterUpload)


async def test_a_database_that_cannot_be_reached_is_unavailable(database_url: str) -> None:
    engine = make_engine(with_database(database_url, "nowhere"))
    with pytest.raises(Unavailable):
        await PostgresQueries(engine, ChannelWakeups()).position()
    await engine.dispose()


# Engine.


async def test_a_disposed_engine_closes_the_connection_of_a_cancelled_request(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, may_connect, connected = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def connect_slowly(*args: Any, **options: Any) -> Connection:
        connecting.set()
        await may_connect.wait()
        connection = await connect(*args, **options)
        connected.set()
        return connection

    async def query() -> None:
        async with read_connection(engine):
            pass

    monkeypatch.setattr("infrastructure.read_model.engine.connect", connect_slowly)
    engine = make_engine(database_url)
    pool = engine.pool  # what returns to it is not collected as long as this refers to it
    request = asyncio.create_task(query())
    await connecting.wait()
    request.cancel()
    with suppress(asyncio.CancelledError):
        await request
    asyncio.get_running_loop().call_later(0.1, may_connect.set)

    await engine.dispose()

    await eventually(connected.is_set)
    with psycopg.connect(database_url, autocommit=True) as connection:
        await eventually(lambda: other_sessions(connection) == 0, deadline=10)
    del pool


def other_sessions(connection: psycopg.Connection) -> int:
    row = connection.execute("""
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND backend_type = 'client backend'""").fetchone()
    assert row is not None
    return int(row[0])
