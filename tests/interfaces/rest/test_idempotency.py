"""A command repeated with its idempotency key gets the first response, for seven days."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from application.append import Append, StreamAppend
from application.commands import RegisterUpload
from application.handlers.execute import CommandContext
from application.handlers.uploads import register_upload
from application.ports.auth import Scope
from domain.file import FileDeclaration
from domain.upload.events import AttemptFailed, AttemptStarted, UploadFailed, UploadQuarantined
from domain.upload.events import UploadQueued as Queued
from infrastructure.postgres.connection import connect
from infrastructure.sweeper import (
    IDEMPOTENCY_RECORDS_PER_STEP,
    IDEMPOTENCY_RETENTION_DAYS,
    delete_old_idempotency_records,
)
from interfaces.bootstrap.container import utc_now
from tests.interfaces.rest.server import Server

BATCH = [
    ("pause", None, {}),
    ("resume", None, {}),
    ("seal", None, {}),
    ("cancel", None, {"json": {"reason": "enough"}}),
    ("retry", "sealed", {}),
    ("priority", None, {"json": {"priority": 3}}),
]
UPLOAD = [
    ("cancel", None, {}),
    ("retry", "failed", {}),
    ("release", "quarantined", {"json": {"reason": "it is fine"}}),
]


async def same_twice(server: Server, path: str, more: dict[str, Any]) -> None:
    """Another client records an event between the two requests."""
    key = {"Idempotency-Key": "once"}
    first = await server.post(path, headers=key, **more)
    assert first.status == 202, first.json
    await server.batch("other")

    again = await server.post(path, headers=key, **more)

    assert (again.status, again.json) == (first.status, first.json)
    assert again.headers["Uptrail-Position"] == first.headers["Uptrail-Position"]
    assert first.json["position"] == int(first.headers["Uptrail-Position"])


@pytest.mark.parametrize(("verb", "state", "more"), BATCH, ids=lambda value: str(value))
async def test_every_command_to_a_batch_is_answered_alike_when_it_is_sent_again(
    server: Server, verb: str, state: str | None, more: dict[str, Any]
) -> None:
    batch = (await server.batch("a", seal=state == "sealed")).json["id"]
    await same_twice(server, f"/v1/batches/{batch}/{verb}", more)


@pytest.mark.parametrize(("verb", "state", "more"), UPLOAD, ids=lambda value: str(value))
async def test_every_command_to_an_upload_is_answered_alike_when_it_is_sent_again(
    server: Server, verb: str, state: str | None, more: dict[str, Any]
) -> None:
    batch = (await server.batch()).json["id"]
    upload = await _upload(server, UUID(batch), state)
    await same_twice(server, f"/v1/uploads/{upload}/{verb}", more)


async def test_a_command_that_changes_nothing_is_answered_alike_when_it_is_sent_again(
    server: Server,
) -> None:
    batch = (await server.batch("a", seal=True)).json["id"]
    await same_twice(server, f"/v1/batches/{batch}/seal", {})


@pytest.mark.parametrize(("files", "seal"), [((), False), ((), True), (("a", "b"), True)])
async def test_a_batch_that_is_started_again_returns_the_position_of_its_start(
    server: Server, files: tuple[str, ...], seal: bool
) -> None:
    body = {"files": [{"path": path, "size": 1} for path in files], "seal": seal}
    key = {"Idempotency-Key": "monday"}
    first = await server.post("/v1/batches", json=body, headers=key)
    await server.batch("other")
    again = await server.post("/v1/batches", json=body, headers=key)

    assert (first.status, again.status) == (201, 200)
    assert again.json["position"] == first.json["position"]


async def test_two_owners_use_the_same_key_independently(server: Server) -> None:
    rival = await server.key_for(Scope.OPERATOR, owner="rival")
    mine = (await server.batch()).json["id"]
    theirs = (await server.post("/v1/batches", key=rival, json={})).json["id"]
    once = {"Idempotency-Key": "once"}

    first = await server.post(f"/v1/batches/{mine}/pause", headers=once)
    second = await server.post(f"/v1/batches/{theirs}/pause", headers=once, key=rival)

    assert [(answer.status, answer.json["id"]) for answer in (first, second)] == [
        (202, mine),
        (202, theirs),
    ]


async def test_requests_with_one_key_at_once_get_one_answer(server: Server) -> None:
    path = f"/v1/batches/{(await server.batch('a')).json['id']}/pause"
    key = {"Idempotency-Key": "once"}
    answers = await asyncio.gather(*(server.post(path, headers=key) for _ in range(20)))

    assert {answer.status for answer in answers} == {202}
    assert len({answer.json["position"] for answer in answers}) == 1


async def test_answers_are_forgotten_after_their_time_a_bounded_number_at_once(
    database_url: str, server: Server
) -> None:
    path = f"/v1/batches/{(await server.batch('a')).json['id']}/pause"
    await server.post(path, headers={"Idempotency-Key": "new"})
    async with await connect(database_url, name="test") as connection:
        await connection.execute(
            "INSERT INTO command_answers SELECT gen_random_uuid(), '', '{}', 0,"
            " now() - make_interval(days => %s, secs => 1)"
            " FROM generate_series(1, %s)",
            (IDEMPOTENCY_RETENTION_DAYS, IDEMPOTENCY_RECORDS_PER_STEP + 10),
        )
        left = []
        more = True
        while more:
            more = await delete_old_idempotency_records(connection)
            cursor = await connection.execute("SELECT count(*) FROM command_answers")
            left.append(await cursor.fetchone())

    assert left == [(11,), (1,)]


async def _upload(server: Server, batch: UUID, state: str | None) -> UUID:
    """An upload of the batch that has come to this state."""
    log, at = server.services.log, utc_now()
    command = RegisterUpload(
        batch=batch, file=FileDeclaration(path="a", size=1), received=1, blob=f"uploads/{uuid4()}"
    )
    context = CommandContext("test", at)
    upload = (await register_upload(log, command, context)).upload
    if state is None:
        return upload.id
    by = "worker:w"
    failed = AttemptFailed(
        at=at, by=by, number=1, step="s", error_type="E", message="m", permanent=True, duration=0.1
    )
    end: Any = UploadFailed(at=at, by=by, step="s", message="m")
    if state == "quarantined":
        end = UploadQuarantined(at=at, by=by, step="s", reason="m")
    events = (Queued(at=at, by=by), AttemptStarted(at=at, by=by, number=1, worker="w"), failed, end)
    await log.append(Append((StreamAppend(upload.id, upload.version, events, upload.owner),)))
    return upload.id
