from __future__ import annotations

from uuid import uuid4

import pytest

from application.errors import NotFound
from application.views import batch_at, show_activity_then, upload_at
from domain.batch.events import BatchSealed
from domain.ids import upload_id_for
from domain.upload.events import FileReceived
from tests.builders import ALICE, later, registered, started
from tests.infrastructure.read_model.support import ReadModel


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
