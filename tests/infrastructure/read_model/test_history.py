from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from uuid import uuid4

import pytest
from sqlalchemy import func, select

from application.append import RecordedEvent
from application.errors import NotFound
from application.views import batch_at, show_activity_then, upload_at
from domain.batch.events import BatchSealed
from domain.ids import upload_id_for
from domain.upload.events import FileReceived
from infrastructure.read_model import history
from infrastructure.read_model.engine import make_engine, snapshot_connection
from infrastructure.read_model.tables import batches
from tests.builders import ALICE, NOON, later, registered, started
from tests.infrastructure.read_model.support import ReadModel, open_read_model, record_batch


async def interleaved(model: ReadModel) -> tuple[object, object]:
    """Two batches of two owners, a piece of each in turn, then sealed."""
    ours, theirs = (
        await record_batch(model, "a", "b"),
        await record_batch(model, "a", owner="globex"),
    )
    for path in ("c", "d", "e"):
        await model.record(upload_id_for(ours, path, b""), registered(batch=ours, path=path))
        await model.record(
            upload_id_for(theirs, path, b""), registered(batch=theirs, path=path, owner="globex")
        )
    for batch in (ours, theirs):
        await model.record(batch, BatchSealed(at=NOON, by=ALICE))
    await model.catch_up()
    return ours, theirs


async def all_pages(
    page: Callable[[int], Awaitable[Sequence[RecordedEvent]]],
) -> list[RecordedEvent]:
    seen: list[RecordedEvent] = []
    while events := await page(seen[-1].position if seen else 0):
        seen += events
    return seen


@pytest.mark.parametrize(("few", "window"), [(2000, 20_000), (0, 3), (0, 20_000), (3, 1)])
async def test_the_history_of_a_batch_is_its_own_and_its_uploads_in_total_order(
    database_url: str, monkeypatch: pytest.MonkeyPatch, few: int, window: int
) -> None:
    """Equally for events gathered stream by stream and for those filtered from the log."""
    monkeypatch.setattr(history, "MAX_GATHERED_STREAMS", few)
    monkeypatch.setattr(history, "SCAN_WINDOW_EVENTS", window)
    monkeypatch.setattr(history, "SPARSE_WINDOW_EVENTS", max(1, window // 100))

    async with open_read_model(database_url) as model:
        ours, _ = await interleaved(model)
        theirs = {ours, *(upload_id_for(ours, path, b"") for path in "abcde")}  # type: ignore[arg-type]
        expected = [event for event in await model.events() if event.stream in theirs]

        seen = await all_pages(
            lambda after: model.history.of_batch(ours, owner="acme", after=after, limit=4)  # type: ignore[arg-type]
        )
        assert seen == expected

        everything = await all_pages(
            lambda after: model.history.of_everything(owner="acme", after=after, limit=4)
        )
        assert everything == expected

        back: list[RecordedEvent] = []
        before = 10**9
        while page := await model.history.of_batch_before(
            ours,  # type: ignore[arg-type]
            before,
            owner="acme",
            limit=4,
        ):
            back, before = [*page, *back], page[0].position
        assert back == expected


async def test_an_admin_sees_the_history_of_every_owner(model: ReadModel) -> None:
    await interleaved(model)

    seen = await all_pages(
        lambda after: model.history.of_everything(owner=None, after=after, limit=7)
    )
    assert seen == list(await model.events())


async def test_the_history_of_an_upload_is_complete_and_goes_on_after_a_position(
    model: ReadModel,
) -> None:
    batch = await record_batch(model, "a")
    upload = upload_id_for(batch, "a", b"")
    await model.catch_up()

    events = await model.history.of_upload(upload, owner="acme")
    assert [event.version for event in events] == [1, 2, 3, 4]
    rest = await model.history.of_upload(upload, owner="acme", after=events[1].position, limit=1)
    assert list(rest) == [events[2]]
    assert await model.history.of_upload(upload, owner=None, after=1000) == []

    last = events[-1].position
    back = await model.history.of_upload_before(upload, last, owner="acme", limit=2)
    assert list(back) == list(events[1:3])
    with pytest.raises(NotFound):
        await model.history.of_upload_before(upload, last, owner="globex")
    with pytest.raises(NotFound):
        await model.history.of_batch_before(batch, last, owner="globex")


async def test_a_history_of_many_streams_never_runs_ahead_of_the_read_model(
    model: ReadModel,
) -> None:
    batch = await record_batch(model, "a")
    reached = await model.catch_up()
    await model.record(upload_id_for(batch, "b", b""), registered(batch=batch, path="b"))
    await model.record(batch, BatchSealed(at=NOON, by=ALICE))

    seen = await model.history.of_batch(batch, owner="acme")
    assert seen[-1].position == reached
    assert await model.history.of_batch_before(batch, reached + 9, owner="acme") == seen
    await model.catch_up()
    more = await model.history.of_batch(batch, owner="acme", after=reached)
    assert [event.position for event in more] == [reached + 1, reached + 2]


async def test_the_statements_of_one_page_see_one_moment(
    database_url: str, model: ReadModel
) -> None:
    engine = make_engine(database_url)
    await record_batch(model, "a")
    await model.catch_up()

    async with snapshot_connection(engine) as session:

        async def count() -> int | None:
            return await session.scalar(select(func.count()).select_from(batches))

        before = await count()
        await record_batch(model, "b")
        await model.catch_up()
        assert await count() == before == 1
    await engine.dispose()


# Rows as of an earlier position or time.


async def test_rows_can_be_seen_as_they_were_at_a_position_or_a_time(model: ReadModel) -> None:
    batch = uuid4()
    upload = upload_id_for(batch, "a", b"")
    began = await model.record(batch, started(at=later(0)))
    joined = await model.record(upload, registered(batch=batch, path="a", at=later(10)))
    arrived = await model.record(upload, FileReceived(at=later(20), by=ALICE, size=100, blob="b"))
    sealed = await model.record(batch, BatchSealed(at=later(30), by=ALICE))

    for moment, state in ((joined, "registered"), (later(15), "registered")):
        row = await upload_at(model.log, upload, moment, owner="acme")
        assert (row.state, row.position) == (state, joined)
    row = await upload_at(model.log, upload, arrived, owner=None)
    assert row.state == "received"
    for moment, state in ((began, "open"), (later(29), "open"), (sealed, "sealed")):
        assert (await batch_at(model.log, batch, moment, owner="acme")).state == state


async def test_the_present_seen_through_the_log_is_what_the_read_model_shows(
    model: ReadModel,
) -> None:
    batch = uuid4()
    await model.record(batch, started(), BatchSealed(at=later(1), by=ALICE))
    position = await model.catch_up()

    then = await batch_at(model.log, batch, position, owner="acme")
    shown = await model.queries.batch(batch, owner="acme")
    assert then == show_activity_then(shown, shown.updated_at)


async def test_a_row_that_did_not_exist_yet_or_is_of_another_owner_is_not_found(
    model: ReadModel,
) -> None:
    before = await model.record(uuid4(), started())
    batch = uuid4()
    position = await model.record(batch, started(at=later(10)))

    for question in (
        batch_at(model.log, batch, before, owner="acme"),
        batch_at(model.log, batch, later(5), owner="acme"),
        batch_at(model.log, batch, position, owner="globex"),
        upload_at(model.log, batch, position, owner="acme"),
    ):
        with pytest.raises(NotFound):
            await question
