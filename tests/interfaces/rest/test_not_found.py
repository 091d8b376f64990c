"""Absent resources and those of other owners get equal responses at equal cost."""

from __future__ import annotations

import secrets
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import structlog
import uuid_utils.compat

from application.ports.auth import Scope
from domain.ids import batch_id_for
from infrastructure.postgres.schema import migrate
from tests.interfaces.rest.server import Answer, Server, serving
from tests.interfaces.rest.test_access import NAMED, body_for
from tests.interfaces.rest.webhook_api import WebhookApi

WORDS = "this does not exist, or is not yours"


class Statements:
    """Counts the statements of requests, by the id of the request; those about keys aside."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_request: Counter[str] = Counter()
        execute = psycopg.AsyncCursor.execute

        async def counting(cursor: Any, query: Any, *args: Any, **more: Any) -> Any:
            request = structlog.contextvars.get_contextvars().get("request_id")
            if request is not None and "api_keys" not in str(query):
                self.by_request[request] += 1
            return await execute(cursor, query, *args, **more)

        monkeypatch.setattr(psycopg.AsyncCursor, "execute", counting)


def kind_of(path: str) -> str:
    """Return the kind of resource of a path; the separate tus endpoint has uploads."""
    kind = path.split("/")[2]
    return kind if kind in ("batches", "webhooks") else "uploads"


def comparable(answer: Answer) -> tuple[Any, ...]:
    """Return a response without its request id."""
    problem = dict(answer.json or {})
    for name in ("request_id", "instance"):
        problem.pop(name, None)
    own = ("X-Request-ID", "Date", "Content-Length")
    headers = sorted((k, v) for k, v in answer.headers.items() if k not in own)
    return answer.status, problem, headers


async def asked(server: Server, method: str, path: str, key: str, id: object) -> tuple[Answer, str]:
    request = secrets.token_hex(8)
    server.client.headers["X-Request-ID"] = request
    try:
        return await body_for(server, method, path, key, id), request
    finally:
        del server.client.headers["X-Request-ID"]


async def test_absent_and_foreign_things_are_answered_alike_with_as_many_statements(
    api: WebhookApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)

    server = api.server
    started = await server.batch("a")
    webhook = (await api.add())["webhook"]["id"]
    await server.services.queries.wait_for(started.json["position"], timeout=60)
    foreign = {
        "batches": started.json["id"],
        "uploads": started.json["uploads"][0],
        "webhooks": webhook,
    }
    keys = [
        await server.key_for(Scope.OPERATOR, "globex"),
        await server.key_for(Scope.UPLOADER, "acme", batch=UUID(int=1)),
    ]
    routes = [*NAMED, ("GET", "/v1/batches/{id}?at=1"), ("GET", "/v1/uploads/{id}?at=1")]
    for method, path in routes:
        id = foreign[kind_of(path)]
        for key in keys:
            absent, request = await asked(server, method, path, key, uuid_utils.compat.uuid7())
            if absent.status == 403:  # the act is refused, whatever it is aimed at
                continue
            cost = statements.by_request[request]
            assert absent.status == 404, (method, path)
            if absent.json:
                assert absent.json["detail"] == WORDS, (method, path)
            for is_remembered in (True, False):
                if is_remembered:
                    await remember(server, path, UUID(id))
                else:
                    server.services.log.forget(UUID(id))
                answer, request = await asked(server, method, path, key, id)
                assert comparable(answer) == comparable(absent), (method, path)
                found = statements.by_request[request]
                assert found == cost, (method, path, is_remembered, found, cost)


async def remember(server: Server, path: str, id: UUID) -> None:
    """Load the aggregate into the cache, as its owner."""
    log = server.services.log
    load = {"batches": log.batch, "uploads": log.upload, "webhooks": log.webhook}
    await load[kind_of(path)](id)
    assert log.remembered(id) is not None


async def test_parts_of_others_cannot_be_distinguished_from_absent_ones(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(monkeypatch)

    tus = {"Tus-Resumable": "1.0.0"}
    part = await server.post(
        "/v1/uploads", headers={**tus, "Upload-Concat": "partial", "Upload-Length": "0"}
    )
    assert part.status == 201
    id = part.headers["Location"].rpartition("/")[2]
    stranger = await server.key_for(Scope.UPLOADER, "globex")
    absent = id[:-6] + f"{(int(id[-6:], 16) + 1) % 2**24:06x}"
    seen = []
    for name in (absent, id):
        request = secrets.token_hex(8)
        headers = {**tus, "Upload-Concat": f"final;/v1/uploads/{name}", "X-Request-ID": request}
        answer = await server.post("/v1/uploads", headers=headers, key=stranger)
        detail = answer.json["detail"].replace(name, "ID")
        seen.append((answer.status, detail, statements.by_request[request]))
    assert seen[0] == seen[1]
    assert seen[0][0] == 400


async def test_an_idempotency_key_of_another_owner_reveals_nothing(server: Server) -> None:
    headers = {"Idempotency-Key": "nightly"}
    mine = await server.post("/v1/batches", json={"label": "a"}, headers=headers)
    stranger = await server.key_for(Scope.OPERATOR, "globex")
    other = {"label": "b"}
    theirs = await server.post("/v1/batches", json=other, headers=headers, key=stranger)
    assert (mine.status, theirs.status) == (201, 201)
    assert mine.json["id"] != theirs.json["id"]
    for id in (mine.json["id"], str(uuid4())):
        path = f"/v1/batches/{id}/seal"
        answer = await server.post(path, headers=headers, key=stranger)
        assert (answer.status, answer.json["detail"]) == (404, WORDS)


async def test_processes_of_one_database_derive_the_same_ids_and_others_do_not(
    database_url: str, empty_database_url: str, tmp_path: Path
) -> None:
    migrate(empty_database_url)

    async with (
        serving(database_url, tmp_path / "a") as here,
        serving(database_url, tmp_path / "a") as there,
        serving(empty_database_url, tmp_path / "c") as other_database,
    ):
        ids = []
        for server in (here, there, other_database):
            headers = {"Idempotency-Key": "nightly"}
            form = {"files": [{"path": "a.txt", "size": 1}]}
            answer = await server.post("/v1/batches", json=form, headers=headers)
            ids.append((answer.json["id"], answer.json["uploads"][0]))
            status = 200 if server is there else 201
            assert answer.status == status
        assert ids[0] == ids[1]
        assert not {*ids[0]} & {*ids[2]}
        secret = here.services.log.id_secret
        assert len(secret) == 32
        assert str(batch_id_for("acme", "nightly", secret)) == ids[0][0]
        assert str(batch_id_for("acme", "nightly", b"")) != ids[0][0]
