"""The eraser is interrupted anywhere and resumes; a repeated step is recorded once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from application.append import Append, IdempotencyRecord
from application.ports.audit import Erasure
from application.transfers.locks import upload_blob_name
from domain.batch.events import BatchCompleted
from domain.batch.state import Outcome
from domain.event import topic_of
from domain.ids import upload_id_for
from domain.upload.events import FileProgressed, UploadCompleted
from domain.upload.state import UploadState
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.erasure import eraser as module
from infrastructure.erasure.eraser import Eraser
from infrastructure.erasure.keyring import PostgresErasures
from infrastructure.event_store.codec import Codec
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.read_model.rebuild import verify
from tests.builders import ALICE, NOON, attempt, given, queued, received, registered, started
from tests.infrastructure.erasure.memory_master_keys import MASTERS, keyring_on
from tests.infrastructure.event_store.log_support import connected
from tests.infrastructure.read_model.support import ReadModel, open_read_model, projecting
from tests.support import execute

ADMIN = "key:admin"
HALF = FileProgressed(
    at=NOON, by=ALICE, phase="transfer", attempt=0, done=50, total=100, percent=50.0
)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEY_CACHE_SECONDS", 0.0)
    monkeypatch.setattr(module, "ROWS_PER_STEP", 2)


async def a_finished_batch(model: ReadModel, *paths: str) -> UUID:
    batch = uuid4()
    await model.record(batch, started(label="secret"))
    over = (UploadCompleted(at=NOON, by=ALICE),)
    for path in paths:
        first = registered(batch=batch, path=path)
        stream = upload_id_for(batch, path, b"")
        await model.record(stream, first, received(), queued(), attempt(), *over)
    counts = {UploadState.COMPLETED: len(paths)}
    ended = BatchCompleted(
        at=NOON, by=ALICE, outcome=Outcome.SUCCEEDED, counts=counts, duration=1.0
    )
    await model.record(batch, ended)
    return batch


async def finish(url: str, eraser: Eraser, erasure: Erasure) -> None:
    async with connected(url) as connection, asyncio.timeout(30):
        while not await eraser.step(connection, erasure):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[LocalBlobStore]:
    store = LocalBlobStore(tmp_path)
    yield store
    store.close()


def wanted() -> Erasure:
    return Erasure(id=uuid4(), owner="acme", reason="", requested_by=ADMIN, requested_at=NOON)


@pytest.mark.parametrize("turns", [1, 3, 10, 30, 100])
async def test_an_erasure_that_was_cut_short_is_carried_out_once(
    database_url: str, blobs: LocalBlobStore, turns: int, model: ReadModel, pool: Pool
) -> None:
    await a_finished_batch(model, "a", "b", "c")
    await a_finished_batch(model, "d")
    await model.catch_up()
    erasure = await PostgresErasures(pool).request(wanted())
    eraser = Eraser(model.log, blobs, MASTERS, lambda: NOON, settle=0.0)
    async with projecting(model):
        cut = asyncio.create_task(finish(database_url, eraser, erasure))
        for _ in range(turns):
            await asyncio.sleep(0)
        cut.cancel()
        with suppress(asyncio.CancelledError):
            await cut
        await finish(database_url, eraser, erasure)
    assert (await verify(database_url, model.log)).sound
    done = await PostgresErasures(pool).get(erasure.id)
    assert (done.finished_at, done.batches, done.uploads) == (NOON, 2, 4)
    events = await model.events()
    assert Counter(
        (topic_of(recorded.event), recorded.event.by)
        for recorded in events
        if topic_of(recorded.event).endswith(".erased")
    ) == {("upload.erased", ADMIN): 4, ("batch.erased", ADMIN): 2}


async def test_reason_of_a_cancelled_attempt_and_hash_of_a_request_are_destroyed(
    database_url: str, blobs: LocalBlobStore
) -> None:
    batch, digest = uuid4(), "5e884898da280471"
    running = given(registered(batch=batch), received(), queued(), attempt(), id=uuid4())
    cancelled = running.cancel("alice left him", at=NOON, by=ALICE)
    over = {UploadState.CANCELLED: 1}
    ended = BatchCompleted(at=NOON, by=ALICE, outcome=Outcome.CANCELLED, counts=over, duration=1.0)
    async with make_pool(database_url, name="e") as pool:
        codec = Codec(encryption=await keyring_on(pool))
        async with open_read_model(database_url, codec) as model:
            await model.record(batch, started(fingerprint=digest))
            file = (registered(batch=batch), received(), queued(), attempt(), *cancelled)
            await model.record(running.id, *file, owner="acme")
            await model.record(batch, ended)
            await model.catch_up()
            (shown,) = await model.queries.attempts(running.id, owner=None)
            assert shown.message == "alice left him"
            erasure = await PostgresErasures(pool).request(wanted())
            async with projecting(model):
                eraser = Eraser(model.log, blobs, MASTERS, lambda: NOON, settle=0.0)
                await finish(database_url, eraser, erasure)
            assert (await verify(database_url, model.log)).sound
        async with pool.connection() as connection:
            cursor = await connection.execute(
                "SELECT convert_from(state, 'UTF8') FROM stored_events"
                " UNION ALL SELECT convert_from(state, 'UTF8') FROM stored_snapshots"
            )
            stored = "".join(row[0] for row in await cursor.fetchall())
    assert "upload.attempt_abandoned" in stored
    assert "alice left him" not in stored
    assert digest not in stored


async def test_bytes_of_an_unfinished_transfer_are_deleted_before_an_erasure_is_finished(
    database_url: str, blobs: LocalBlobStore, model: ReadModel, pool: Pool
) -> None:
    """Without a sweeper, which would delete them a moment later."""
    batch = uuid4()
    unfinished = given(registered(batch=batch), HALF, id=uuid4())
    over = {UploadState.CANCELLED: 1}
    ended = BatchCompleted(at=NOON, by=ALICE, outcome=Outcome.CANCELLED, counts=over, duration=1.0)
    await model.record(batch, started())
    cancelled = unfinished.cancel("", at=NOON, by=ALICE)
    await model.record(unfinished.id, registered(batch=batch), HALF, *cancelled, owner="acme")
    await model.record(batch, ended)
    await model.catch_up()
    await blobs.put(upload_blob_name(unfinished.id), b"half of a file")
    erasure = await PostgresErasures(pool).request(wanted())

    async with projecting(model):
        eraser = Eraser(model.log, blobs, MASTERS, lambda: NOON, settle=0.0)
        await finish(database_url, eraser, erasure)

    assert await blobs.size(upload_blob_name(unfinished.id)) == 0


async def test_what_a_receiver_repeated_is_erased_from_deliveries_that_wait(
    database_url: str, blobs: LocalBlobStore, model: ReadModel, pool: Pool
) -> None:
    webhook = uuid4()
    execute(
        database_url,
        "INSERT INTO webhooks.endpoints (id, owner, enabled, webhook)"
        " VALUES (%s, 'acme', true, '{}')",
        webhook,
    )
    execute(
        database_url,
        "INSERT INTO webhooks.deliveries (webhook, position, lane, stream, version, type,"
        " state, queued_at, last) VALUES (%s, 1, %s, %s, 1, 'batch.started', 'pending', now(),"
        """ '{"excerpt": "dear alice"}')""",
        *(webhook, uuid4(), uuid4()),
    )
    erasure = await PostgresErasures(pool).request(wanted())

    async with projecting(model):
        eraser = Eraser(model.log, blobs, MASTERS, lambda: NOON, settle=0.0)
        await finish(database_url, eraser, erasure)

    async with pool.connection() as connection:
        cursor = await connection.execute("SELECT position, last FROM webhooks.deliveries")
        assert await cursor.fetchall() == [(1, None)]


async def test_statistics_of_an_emptied_table_are_dropped(database_url: str) -> None:
    execute(
        database_url,
        "INSERT INTO command_answers (command_id, fingerprint, body, position)"
        " SELECT gen_random_uuid(), 'of a reason ' || n / 50, '', 1"
        " FROM generate_series(1, 99) n",
    )
    execute(database_url, "ANALYZE command_answers")
    execute(database_url, "DELETE FROM command_answers")
    async with connected(database_url) as connection:
        query = "SELECT count(*) FROM pg_stats WHERE tablename = 'command_answers'"
        assert await (await connection.execute(query)).fetchone() != (0,)
        await module._rewrite_table(connection, "command_answers")
        assert await (await connection.execute(query)).fetchone() == (0,)


async def test_answers_kept_for_commands_of_the_owner_are_erased_and_no_others(
    database_url: str, blobs: LocalBlobStore
) -> None:
    """Whatever the body of a record is: a new command's may have no id, or one of a new kind."""
    other = b'{"id":"%s"}' % str(uuid4()).encode()
    async with open_read_model(database_url) as model, make_pool(database_url, name="e") as pool:
        batch = await a_finished_batch(model, "a")
        upload = upload_id_for(batch, "a", b"")
        bodies = [b'{"id":"%s"}' % str(id).encode() for id in (batch, upload)]
        for body in (*bodies, b'{"webhook":"%s"}' % str(uuid4()).encode(), b'{"id":1}', b"\xff"):
            answer = IdempotencyRecord(uuid4(), "acme", "hash of a reason", body)
            await model.log.append(Append((), idempotency=answer))
        answer = IdempotencyRecord(uuid4(), "umbrella", "hash of a reason", other)
        await model.log.append(Append((), idempotency=answer))
        async with pool.connection() as connection:
            for body in (*bodies, other):  # of a process of an earlier version
                await connection.execute(
                    "INSERT INTO command_answers VALUES (gen_random_uuid(), '', %s, 0)", (body,)
                )
        await model.catch_up()
        erasure = await PostgresErasures(pool).request(wanted())
        async with projecting(model):
            eraser = Eraser(model.log, blobs, MASTERS, lambda: NOON, settle=0.0)
            await finish(database_url, eraser, erasure)
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT body FROM command_answers")
            left = await cursor.fetchall()
    assert left == [(other,), (other,)]


def test_an_idempotency_record_cannot_be_made_without_an_owner() -> None:
    with pytest.raises(TypeError, match="Missing required argument"):
        IdempotencyRecord(command_id=uuid4(), fingerprint="", body=b"")  # type: ignore[call-arg]


async def test_a_repeated_request_is_the_same_erasure_until_it_is_done(pool: Pool) -> None:
    erasures = PostgresErasures(pool)
    first, second = wanted(), wanted()
    assert await erasures.request(first) == first
    assert await erasures.request(second) == first
    assert await erasures.page(owner=None, after=None, limit=10) == [first]
    assert await erasures.page(owner="acme", after=first.id, limit=10) == []


async def test_an_owner_with_a_batch_that_runs_is_not_done_yet(
    model: ReadModel, pool: Pool, connection: Connection, blobs: LocalBlobStore
) -> None:
    """The batch is called off; that it ends is the orchestrator's, which does not run here."""

    await model.record(uuid4(), started())
    await model.catch_up()
    erasure = await PostgresErasures(pool).request(wanted())
    eraser = Eraser(model.log, blobs, MASTERS, lambda: NOON, settle=0.0)
    assert not await eraser.step(connection, erasure)


async def test_the_eraser_touches_nothing_before_every_process_has_acknowledged(
    model: ReadModel, pool: Pool, connection: Connection, blobs: LocalBlobStore
) -> None:
    await a_finished_batch(model, "a")
    await model.catch_up()
    erasure = await PostgresErasures(pool).request(wanted())
    head = await model.log.head()
    eraser = Eraser(model.log, blobs, MASTERS, lambda: NOON)
    assert not await eraser.step(connection, erasure)
    assert await model.log.head() == head
