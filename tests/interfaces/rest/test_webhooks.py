"""Webhooks over HTTP: registration, secrets shown once, deliveries."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from application.ports.auth import Scope
from application.public_addresses import masked
from domain.webhook.events import DELIVERED_TOPICS
from interfaces.rest.openapi import WEBHOOK_HEADERS, BatchMessage, UploadMessage
from tests.infrastructure.webhooks.harness import always
from tests.interfaces.last_position import last_position
from tests.interfaces.rest.server import Answer, Server
from tests.interfaces.rest.webhook_api import HOOK, WebhookApi
from tests.support import eventually


async def test_a_webhook_lives_from_its_addition_to_its_removal(api: WebhookApi) -> None:
    ask = api.server.ask
    added = await api.add(description="our album")
    path = f"/v1/webhooks/{added['webhook']['id']}"

    (listed,) = (await ask("GET", "/v1/webhooks")).json["items"]
    assert listed == (await ask("GET", path)).json
    assert (listed["enabled"], listed["description"]) == (True, "our album")
    changed = await ask("PATCH", path, json={"events": ["upload.failed"], "label": "x"})
    assert (changed.json["events"], changed.json["label"]) == (["upload.failed"], "x")
    assert changed.json["description"] == "our album"
    assert (await ask("PATCH", path, json={"label": None})).json["label"] is None
    disabled = await ask("POST", f"{path}/disable", json={"reason": "too loud"})
    assert (disabled.json["enabled"], disabled.json["reason"]) == (False, "too loud")
    assert (await ask("POST", f"{path}/enable")).json["enabled"]
    assert (await ask("DELETE", path)).status == 204
    assert (await ask("GET", path)).status == 404
    assert (await ask("GET", "/v1/webhooks")).json["items"] == []

    history = (await ask("GET", f"{path}/history")).json["items"]
    assert [item["type"].removeprefix("webhook.") for item in history] == [
        *("added", "changed", "changed", "disabled", "enabled", "removed")
    ]
    assert {item["by"] for item in history} == {listed["added_by"]}


async def test_a_secret_is_shown_when_it_is_made_and_nowhere_else(api: WebhookApi) -> None:
    added = await api.add()
    path = f"/v1/webhooks/{added['webhook']['id']}"
    rotated = (await api.server.post(f"{path}/rotate")).json
    secrets = [added["secret"], rotated["secret"]]

    assert len({*secrets}) == 2
    assert all_are_secrets(secrets)
    assert rotated["webhook"]["earlier_secrets_until"] is not None
    admin = await api.server.key_for(Scope.ADMIN)
    for place in (path, "/v1/webhooks", f"{path}/history", "/v1/history", "/openapi.json"):
        answer = await api.server.get(place, key=admin)
        assert answer.status == 200
        for secret in secrets:
            assert secret.removeprefix("whsec_").encode() not in answer.body


def all_are_secrets(texts: list[str]) -> bool:
    return {text[:6] for text in texts} == {"whsec_"}


async def test_a_test_shows_whether_requests_arrive(api: WebhookApi) -> None:
    added = await api.add()
    path = f"/v1/webhooks/{added['webhook']['id']}"
    asked = await api.server.post(f"{path}/test")
    delivery = await api.delivery(added["webhook"]["id"], "delivered")

    assert asked.status == 202
    assert (delivery["position"], delivery["batch"]) == (asked.json["position"], None)
    assert delivery["last"]["status"] == 204
    assert api.receiver.requests[0].verify(added["secret"])["type"] == delivery["type"]

    api.receiver.answer = always(500, "not yet")
    asked = await api.server.post(f"{path}/test")
    failed = await api.delivery(added["webhook"]["id"], "failed")
    assert (failed["attempts"], failed["last"]["excerpt"]) == (1, "not yet")
    shown = (await api.server.get(path)).json
    assert (shown["failed"], shown["failing_since"]) == (1, None)


async def test_deliveries_are_listed_shown_and_made_again(api: WebhookApi) -> None:
    ask, id = api.server.ask, (await api.add(events=["batch.started"]))["webhook"]["id"]
    path = f"/v1/webhooks/{id}/deliveries"
    for _ in range(3):
        await api.server.batch()
    await eventually(lambda: len(api.receiver.requests) == 3)

    async def page() -> Answer:
        return await ask("GET", path, params={"limit": "2", "state": "delivered"})

    async def full() -> bool:
        return len((await page()).json["items"]) == 2 and (await page()).json["next"]

    await eventually(full)
    first = (await page()).json
    rest = (await ask("GET", path, params={"cursor": first["next"]})).json
    items = first["items"] + rest["items"]
    assert rest["next"] is None
    positions = [item["position"] for item in items]
    assert positions == sorted(api.receiver.positions, reverse=True)
    one = await ask("GET", f"{path}/{positions[0]}")
    assert one.json == items[0]
    again = await ask("POST", f"{path}/{positions[0]}/redeliver")
    assert (again.status, again.json["state"]) == (202, "pending")
    await eventually(lambda: len(api.receiver.requests) == 4)
    assert len({request.id for request in api.receiver.requests}) == 3

    since = {"since": "2026-01-01T00:00:00Z"}
    none = await ask("POST", f"/v1/webhooks/{id}/redeliver", json=since)
    assert (none.status, none.json["deliveries"]) == (202, 0)


async def test_webhooks_of_another_owner_do_not_exist(api: WebhookApi) -> None:
    id = (await api.add())["webhook"]["id"]
    batch = await api.server.batch()
    delivery = await api.delivery(id, "delivered")
    stranger = await api.server.key_for(Scope.OPERATOR, "globex")
    viewer = await api.server.key_for(Scope.VIEWER)
    path = f"/v1/webhooks/{id}"
    position = delivery["position"]
    asked: list[tuple[str, str, Any]] = [
        ("GET", path, None),
        ("PATCH", path, {"label": "x"}),
        ("DELETE", path, None),
        ("POST", f"{path}/rotate", None),
        ("POST", f"{path}/test", None),
        ("POST", f"{path}/disable", {"reason": "x"}),
        ("POST", f"{path}/enable", None),
        ("POST", f"{path}/redeliver", {"since": "2026-01-01T00:00:00Z"}),
        ("GET", f"{path}/history", None),
        ("GET", f"{path}/deliveries", None),
        ("GET", f"{path}/deliveries/{position}", None),
        ("POST", f"{path}/deliveries/{position}/redeliver", None),
    ]
    for method, target, body in asked:
        theirs = await api.server.ask(method, target, key=stranger, json=body)
        assert (theirs.status, theirs.code) == (404, "not_found"), target
    for method, target, body in asked:
        if not target.endswith("history"):
            refused = await api.server.ask(method, target, key=viewer, json=body)
            assert (refused.status, refused.code) == (403, "scope_missing"), target
    assert (await api.server.get("/v1/webhooks", key=stranger)).json["items"] == []
    for notify in (id, api.receiver.url):
        named = await api.server.post("/v1/batches", key=stranger, json={"notify": notify})
        assert (named.status, named.pointers) == (422, ["/notify"])
    assert batch.status == 201
    assert len(api.receiver.requests) == 1


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"url": "ftp://example.com/"}, "/url"),
    ({"url": "http://127.0.0.1/"}, "/url"),
    ({"url": "http://[::1]:80/"}, "/url"),
    ({"url": "http://169.254.169.254/latest"}, "/url"),
    ({"url": "http://①②⑦.⓪.⓪.①:8000/"}, "/url"),
    ({"url": "http://localhost./hook"}, "/url"),
    ({"url": "http://2130706433/"}, "/url"),
    ({"url": "http://127%2e0%2e0%2e1/"}, "/url"),
    ({"url": "https://me:word@example.com/"}, "/url"),
    ({"events": ["batch.progressed"]}, "/events/0"),
    ({"events": []}, "/events"),
    ({"events": "batch.completed"}, "/events"),
    ({"label": "a\nb"}, "/label"),
    ({"secret": "whsec_mine"}, "/secret"),
    ({"owner": "a\0b"}, "/owner"),
]


async def test_a_faulty_webhook_is_refused_and_the_fault_pointed_at(server: Server) -> None:
    admin = await server.key_for(Scope.ADMIN)
    for fields, pointer in FAULTS:
        answer = await server.post("/v1/webhooks", key=admin, json={**HOOK, **fields})

        assert answer.status == 422, (fields, answer.body)
        assert answer.pointers == [pointer], fields
    theirs = await server.post("/v1/webhooks", json={**HOOK, "owner": "globex"})
    assert (theirs.status, theirs.pointers) == (403, ["/owner"])
    assert await last_position(server.services.log) == 0


async def test_an_owner_has_a_limited_number_of_webhooks(
    api: WebhookApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interfaces.rest.webhooks.MAX_OWNER_WEBHOOKS", 2)

    for _ in range(2):
        await api.add()
    refused = await api.server.post("/v1/webhooks", json=HOOK)

    assert (refused.status, refused.code) == (409, "too_many_webhooks")


async def test_a_batch_names_a_webhook_that_receives_events_on_request(api: WebhookApi) -> None:
    id = (await api.add(events=list(DELIVERED_TOPICS), on_request=True))["webhook"]["id"]
    await api.server.batch()
    asking = await api.server.batch(notify=id)
    await api.delivery(id, "delivered")

    (request,) = api.receiver.requests
    assert request.json["data"]["batch"]["id"] == asking.json["id"]


async def test_pending_deliveries_are_measured(api: WebhookApi) -> None:
    api.receiver.answer = always(500)
    await api.add(events=["batch.started"])
    await api.server.batch()

    async def measured() -> bool:
        text = (await api.server.get("/metrics")).body.decode()
        return (
            "uptrail_webhook_deliveries_pending 1.0" in text
            and "uptrail_webhooks_failing 1.0" in text
            and 'uptrail_lag{follower="webhooks"} 0.0' in text
        )

    await eventually(measured)


async def test_messages_are_what_the_description_says(api: WebhookApi) -> None:
    await api.add(events=["batch.started", "upload.rejected", "batch.sealed"])
    started = await api.server.batch("a")
    path = f"/v1/batches/{started.json['id']}"
    await api.server.post(f"{path}/uploads", json=[{"path": "../x"}])
    await api.server.post(f"{path}/seal")
    await eventually(lambda: len(api.receiver.requests) == 3)
    document = (await api.server.get("/openapi.json")).json

    assert set(document["webhooks"]) == set(DELIVERED_TOPICS)
    for request in api.receiver.requests:
        kind = request.json["type"].split(".")[0]
        message = BatchMessage if kind == "batch" else UploadMessage
        decoded: Any = msgspec.json.decode(request.body, type=message)
        assert decoded.data.links.batch.endswith(path)
        schemas = document["components"]["schemas"]
        shown = schemas["BatchView" if kind == "batch" else "Upload"]["properties"]
        assert set(request.json["data"][kind]) == set(shown)
        assert set(WEBHOOK_HEADERS) <= set(request.headers)


TOKEN = "T0KEN"


async def test_addresses_of_webhooks_are_for_operators_alone(api: WebhookApi) -> None:
    server = api.server
    url = f"https://hooks.example.com/{TOKEN}?token={TOKEN}"
    id = (await api.add(url=url, on_request=True))["webhook"]["id"]
    batch = (await server.batch("a.txt", notify=url)).json
    position = f"min_position={batch['position']}"
    paths = [
        "/v1/webhooks",
        f"/v1/webhooks/{id}",
        f"/v1/webhooks/{id}/history",
        f"/v1/webhooks/{id}/history?format=ndjson",
        f"/v1/webhooks/{id}/deliveries",
        f"/v1/history?{position}",
        f"/v1/history?{position}&format=ndjson",
        f"/v1/batches/{batch['id']}?{position}",
        f"/v1/batches/{batch['id']}/history?{position}",
        f"/v1/batches/{batch['id']}/history?{position}&before=1000000",
        f"/v1/batches/{batch['id']}/history/export",
        f"/v1/batches/{batch['id']}/report.json?{position}",
        "/v1/history/export",
    ]
    for scope in (Scope.VIEWER, Scope.UPLOADER):
        key = await server.key_for(scope)
        for path in paths:
            answer = await server.get(path, key=key)
            assert TOKEN.encode() not in answer.body, (scope, path)
            if "/webhooks" in path:
                assert (answer.status, answer.code) == (403, "scope_missing"), path
        history = await server.get(f"/v1/batches/{batch['id']}/history", key=key)
        assert history.json["items"][0]["data"]["notify"] == "https://hooks.example.com/..."
    mine = await server.get(f"/v1/webhooks/{id}/history")
    assert TOKEN in mine.json["items"][0]["data"]["subscription"]["url"]


@pytest.mark.parametrize(
    ("notify", "shown"),
    [
        ("https://user:T0KEN@h.example:8443/T0KEN", "https://h.example/..."),
        ("01a22d99-b08d-7052-badb-c285b0a790fb", "01a22d99-b08d-7052-badb-c285b0a790fb"),
        ("https://[broken/T0KEN", "..."),
        ("T0KEN", "..."),
    ],
)
def test_a_masked_address_shows_the_host_at_most(notify: str, shown: str) -> None:
    assert masked(notify) == shown
