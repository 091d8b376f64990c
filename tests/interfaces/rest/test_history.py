"""Recorded events over HTTP, page by page or as one stream."""

from __future__ import annotations

import json
from typing import Any

import pytest

from application.ports.auth import Scope
from domain.ids import key_stream_for
from tests.interfaces.rest.server import Server


async def lines(server: Server, path: str, **options: Any) -> list[dict[str, Any]]:
    answer = await server.get(path, **options)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    return [json.loads(line) for line in answer.body.splitlines()]


async def test_the_history_of_a_batch_has_actor_action_and_time(server: Server) -> None:
    started = await server.batch("a", label="x")
    path = f"/v1/batches/{started.json['id']}/history"
    params = {"min_position": started.json["position"]}

    items = (await server.get(path, params=params)).json["items"]

    assert [item["type"] for item in items] == [
        "batch.started",
        "batch.uploads_added",
        "upload.registered",
    ]
    first = items[0]
    assert first["by"] == f"key:{server.key.split('_')[1]}"
    assert first["at"] == started.json["started_at"]
    assert (first["version"], first["stream"]) == (1, started.json["id"])
    assert first["data"]["label"] == "x"
    assert first["command"]
    positions = [item["position"] for item in items]
    assert positions == sorted(positions)
    assert items[-1]["position"] == started.json["position"]


async def test_a_history_is_read_page_by_page_or_as_lines(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interfaces.rest.history.EVENTS_PER_PAGE", 4)

    started = await server.batch(*(f"f{n}" for n in range(10)))
    batch = f"/v1/batches/{started.json['id']}/history"
    params: dict[str, Any] = {"min_position": started.json["position"], "limit": 3}
    await server.get(batch, params=params)
    for path in (batch, "/v1/history"):
        paged, after = [], 0
        while after is not None:
            page = (await server.get(path, params={**params, "after": after})).json
            paged += page["items"]
            after = page["next"]
        streamed = await lines(server, path, params={"format": "ndjson"})
        accepted = await lines(server, path, headers={"Accept": "application/x-ndjson"})
        some = await lines(server, path, params={"format": "ndjson", "limit": 5})

        assert len(paged) == 12
        assert streamed == paged == accepted
        assert some == paged[:5]


async def test_the_history_of_an_upload_begins_where_it_was_left(server: Server) -> None:
    started = await server.batch("a")
    upload = started.json["uploads"][0]
    cancelled = await server.post(f"/v1/uploads/{upload}/cancel")
    params = {"min_position": cancelled.json["position"]}
    path = f"/v1/uploads/{upload}/history"

    all = (await server.get(path, params=params)).json["items"]
    rest = (await server.get(path, params={"after": all[0]["position"]})).json["items"]

    assert [event["version"] for event in all] == [1, 2]
    assert rest == all[1:]
    assert (await server.ask("HEAD", path, params={"format": "ndjson"})).status == 200


async def test_a_history_is_read_towards_the_beginning(server: Server) -> None:
    started = await server.batch(*(f"f{n}" for n in range(10)))
    path = f"/v1/batches/{started.json['id']}/history"
    all = (await server.get(path, params={"min_position": started.json["position"]})).json

    back: list[dict[str, Any]] = []
    before = all["items"][-1]["position"] + 1
    while before is not None:
        page = (await server.get(path, params={"before": before, "limit": 5})).json
        back, before = [*page["items"], *back], page["next"]

    assert back == all["items"]
    upload = f"/v1/uploads/{started.json['uploads'][0]}/history"
    assert (await server.get(upload, params={"before": 1})).json["items"] == []
    for wrong in ({"after": 1}, {"format": "ndjson"}):
        answer = await server.get(path, params={"before": 9, **wrong})
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (400, "before")
    assert (await server.get("/v1/history", params={"before": 9})).status == 400


async def test_an_admin_reads_who_made_and_revoked_keys(server: Server) -> None:
    admin = await server.key_for(Scope.ADMIN)
    body = {"scope": "viewer", "owner": "globex", "label": "auditor"}
    made = (await server.post("/v1/keys", key=admin, json=body)).json
    await server.ask("DELETE", f"/v1/keys/{made['key']['id']}", key=admin)

    events = await lines(
        server, "/v1/history", key=admin, headers={"Accept": "application/x-ndjson"}
    )

    created, revoked = events[-2:]
    assert (created["type"], revoked["type"]) == ("key.created", "key.revoked")
    assert created["by"] == revoked["by"] == f"key:{admin.split('_')[1]}"
    assert created["data"]["owner"] == "globex"
    assert created["stream"] == revoked["stream"]
    assert not any(made["text"].split("_", 2)[2] in str(event) for event in events)


@pytest.mark.parametrize("owner", ["acme", "globex"])
async def test_the_history_of_an_owner_contains_no_key_or_erasure(
    server: Server, owner: str
) -> None:
    admin = await server.key_for(Scope.ADMIN)
    viewer = await server.key_for(Scope.VIEWER, owner)
    started = await server.batch("a")
    await server.post("/v1/erasures", key=admin, json={"owner": "gone"})
    head = await server.services.log.head()
    params = {"min_position": head}

    answer = await server.get("/v1/history", key=viewer, params=params)

    types = {item["type"].partition(".")[0] for item in answer.json["items"]}
    assert types == ({"batch", "upload"} if owner == "acme" else set())
    assert started.status == 201


@pytest.mark.parametrize("kind", ["batches", "uploads", "webhooks"])
async def test_the_stream_of_a_key_is_no_batch_upload_or_webhook(server: Server, kind: str) -> None:
    stream = key_stream_for(server.key.split("_")[1])

    assert (await server.get(f"/v1/{kind}/{stream}")).status == 404
    assert (await server.get(f"/v1/{kind}/{stream}/history")).status == 404
