"""Requests for erasure over HTTP; `tests/interfaces/cli/test_erasure.py` sees one carried out."""

from __future__ import annotations

import pytest

from application.ports.auth import Scope
from tests.interfaces.rest.server import Server


async def test_an_erasure_is_recorded_with_requester_and_reason(server: Server) -> None:
    admin = await server.key_for(Scope.ADMIN, owner="boss")
    body = {"owner": "acme", "reason": "asked by letter"}

    asked = await server.post("/v1/erasures", json=body, key=admin)
    again = await server.post("/v1/erasures", json=body, key=admin)

    assert (asked.status, again.status) == (202, 202)
    assert asked.json == again.json
    assert asked.headers["Location"] == f"{server.url}/v1/erasures/{asked.json['id']}"
    assert (asked.json["owner"], asked.json["reason"]) == ("acme", "asked by letter")
    assert asked.json["requested_by"] == f"key:{admin.split('_')[1]}"
    shown = await server.get(asked.headers["Location"], key=admin)
    listed = await server.get("/v1/erasures?owner=acme", key=admin)
    assert shown.json == asked.json
    assert listed.json["items"] == [asked.json]
    assert (await server.get("/v1/erasures?owner=other", key=admin)).json["items"] == []


async def test_erasures_are_for_admins(server: Server) -> None:
    for method in ("GET", "POST"):
        refused = await server.ask(method, "/v1/erasures", json={"owner": "acme"})
        assert (refused.status, refused.code) == (403, "scope_missing")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "/owner"),
        ({"owner": ""}, "/owner"),
        ({"owner": "a\nb"}, "/owner"),
        ({"owner": "acme", "reason": "x" * 1001}, "/reason"),
    ],
    ids=["missing", "empty", "control character", "too long"],
)
async def test_a_request_that_cannot_be_meant_names_its_field(
    server: Server, body: dict[str, str], pointer: str
) -> None:
    admin = await server.key_for(Scope.ADMIN)
    refused = await server.post("/v1/erasures", json=body, key=admin)
    assert refused.status in (400, 422)
    assert refused.pointers == [pointer]
