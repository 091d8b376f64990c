"""Operations: health, readiness, metrics and the description of the API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from application.errors import Unavailable
from interfaces.rest.app import OPERATIONS
from interfaces.rest.openapi import openapi
from tests.interfaces.rest.server import Server, serving
from tests.support import eventually


async def test_health_and_readiness_need_no_key(server: Server) -> None:
    position = (await server.batch("a")).json["position"]
    await server.services.queries.wait_for(position, timeout=60)

    assert (await server.get("/healthz", key=None)).json == {"status": "ok"}
    ready = await server.get("/readyz", key=None)
    assert ready.json == {"status": "ready", "head": position, "position": position, "lag": 0}


async def test_without_its_database_a_server_lives_but_is_not_ready(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def unavailable(*_: Any, **__: Any) -> Any:
        raise Unavailable("no connection")

    monkeypatch.setattr(type(server.services.log), "head", unavailable)
    monkeypatch.setattr(type(server.services.keys), "authenticate", unavailable)

    assert (await server.get("/healthz", key=None)).status == 200
    not_ready = await server.get("/readyz", key=None)
    assert (not_ready.status, not_ready.code) == (503, "not_ready")
    refused = await server.get("/v1/batches")
    assert (refused.status, refused.code) == (503, "unavailable")
    assert refused.headers["Retry-After"] == "1"


async def test_requests_are_measured_by_route_not_by_path(server: Server) -> None:
    started = await server.batch("a", "b")
    id = started.json["id"]
    await server.services.queries.wait_for(started.json["position"], timeout=60)
    for _ in range(3):
        await server.get(f"/v1/batches/{id}")
    await server.get("/v1/made-up")

    async def metrics() -> str:
        text: str = (await server.get("/metrics")).body.decode()
        return text if "uptrail_log_head 5.0" in text else ""  # a slow database: not yet

    text = await eventually(metrics)

    route = 'method="GET",route="/v1/batches/{id}"'
    assert f'uptrail_http_requests_total{{{route},status="200"}} 3.0' in text
    assert 'route="none",status="404"' in text
    assert "made-up" not in text
    assert id not in text
    assert 'uptrail_lag{follower="orchestrator"} 5.0' in text
    assert "uptrail_jobs_queued 0.0" in text
    room = next(line for line in text.splitlines() if line.startswith("uptrail_storage"))
    assert float(room.split()[1]) > 0
    received = next(line for line in text.splitlines() if line.startswith("uptrail_http_received"))
    assert float(received.split()[1]) > 50


async def test_two_applications_do_not_share_their_numbers(
    database_url: str, tmp_path: Path
) -> None:
    async with (
        serving(database_url, tmp_path) as one,
        serving(database_url, tmp_path) as two,
    ):
        await one.get("/v1/history")

        assert b"/v1/history" not in (await two.get("/metrics")).body


def references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [ref for part in value.values() for ref in references(part)]
    if isinstance(value, list):
        return [ref for part in value for ref in references(part)]
    return []


async def test_the_description_covers_every_operation_and_is_whole(server: Server) -> None:
    document = openapi(OPERATIONS)
    schemas = document["components"]["schemas"]
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    assert described == {(operation.method, operation.path) for operation in OPERATIONS}
    assert {ref.removeprefix("#/components/schemas/") for ref in references(document)} <= set(
        schemas
    )
    assert "blob" not in schemas["Upload"]["properties"]
    names = [item["operationId"] for path in document["paths"].values() for item in path.values()]
    assert len(names) == len(set(names))

    answer = await server.get("/openapi.json", key=None)
    assert answer.json == json.loads(msgspec.json.encode(document))
