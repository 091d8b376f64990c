from __future__ import annotations

import asyncio

import psycopg

from domain.ids import upload_id_for
from infrastructure.read_model.rebuild import Verification, verify
from tests.infrastructure.read_model.support import (
    open_read_model,
    projecting,
    record_batch,
)
from tests.support import tamper


async def verified_after(url: str, statement: str, *parameters: object) -> Verification:
    """Return the findings of a verification after this SQL on a batch of two uploads."""
    async with open_read_model(url) as model:
        await record_batch(model, "a", "b")
        await model.catch_up()
        if statement:
            tamper(url, statement, *parameters)
        found = await verify(url, model.log)
    assert scratch_schemas(url) == []
    return found


async def test_an_untouched_read_model_is_sound(database_url: str) -> None:
    found = await verified_after(database_url, "")

    assert found.sound
    assert found.compared == {"batches": 1, "uploads": 2, "attempts": 2}
    assert found.position == 9


async def test_a_value_that_was_changed_by_hand_is_found(database_url: str) -> None:
    found = await verified_after(
        database_url, "UPDATE read_model.uploads SET size = 7, error = 'x' WHERE path = 'b'"
    )

    assert not found.sound
    assert found.differing == {"batches": 0, "uploads": 1, "attempts": 0}
    assert [(d.table, d.column, d.live, d.replayed) for d in found.differences] == [
        ("uploads", "size", 7, 100),
        ("uploads", "error", "x", None),
    ]


async def test_a_row_that_is_missing_is_found(database_url: str) -> None:
    found = await verified_after(database_url, "DELETE FROM read_model.uploads WHERE path = 'b'")

    (difference,) = found.differences
    assert (difference.table, difference.column, difference.live) == ("uploads", None, None)
    assert difference.replayed["path"] == "b"
    assert found.compared["uploads"] == 2


async def test_a_row_that_no_event_explains_is_found(database_url: str) -> None:
    found = await verified_after(
        database_url,
        "INSERT INTO read_model.attempts (upload, number, worker, state, started_at, position)"
        " SELECT upload, 2, worker, state, started_at, position FROM read_model.attempts LIMIT 1",
    )

    (difference,) = found.differences
    assert (difference.table, difference.column, difference.replayed) == ("attempts", None, None)
    assert difference.key.endswith("/2")


async def test_an_event_that_was_deleted_is_found(database_url: str) -> None:
    found = await verified_after(
        database_url,
        "DELETE FROM stored_events WHERE originator_version = 2"
        " AND originator_id = (SELECT id FROM read_model.uploads WHERE path = 'a')",
    )

    assert not found.sound
    (gap,) = found.breaks
    assert (gap.version_before, gap.version) == (1, 3)


async def test_a_stream_whose_beginning_was_deleted_is_found(database_url: str) -> None:
    found = await verified_after(
        database_url,
        "DELETE FROM stored_events WHERE originator_version = 1 AND topic = 'batch.started'",
    )

    assert not found.sound
    assert found.differing["batches"] == 1


async def test_events_whose_order_was_swapped_are_found(database_url: str) -> None:
    found = await verified_after(
        database_url,
        "UPDATE stored_events SET notification_id = notification_id + 1000"
        " WHERE originator_version = 2 AND topic = 'upload.file_received'",
    )

    assert not found.sound
    assert found.differing["uploads"] == 2


async def test_reordered_events_within_the_position_are_a_break(database_url: str) -> None:
    found = await verified_after(
        database_url,
        "UPDATE stored_events SET notification_id = -notification_id"
        " WHERE originator_version = 3 AND topic = 'upload.queued'",
    )

    assert {(one.version, one.version_before) for one in found.breaks} == {(3, 2)}


async def test_many_differences_are_all_counted_and_some_named(database_url: str) -> None:
    async with open_read_model(database_url) as model:
        await record_batch(model, *(f"{number:03}" for number in range(120)))
        await model.catch_up()
        tamper(database_url, "UPDATE read_model.uploads SET received = 1")
        found = await verify(database_url, model.log)
    assert found.differing["uploads"] == 120
    assert len(found.differences) == 100


async def test_verification_agrees_while_uploads_go_on(database_url: str) -> None:
    async with open_read_model(database_url) as model, projecting(model):
        done = asyncio.Event()

        async def keep_recording() -> None:
            while not done.is_set():
                batch = await record_batch(model, "a", "b")
                assert upload_id_for(batch, "a", b"")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_recording())
            for _ in range(3):
                found = await verify(database_url, model.log)
                assert found.sound, found
            done.set()
    assert scratch_schemas(database_url) == []


def scratch_schemas(url: str) -> list[str]:
    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'read_model_%'"
            " UNION ALL SELECT application_name FROM notification_tracking"
            " WHERE application_name LIKE 'read_model_%'"
        )
        return [row[0] for row in rows]
