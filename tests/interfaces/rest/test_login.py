"""Browsers sign in with a link that works once; admins make and revoke keys."""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any

import pytest

from application.ports.auth import Scope
from interfaces.common.access import SESSION_COOKIE
from tests.interfaces.rest.server import Answer, Server


async def code_for(server: Server) -> str:
    principal = await server.services.keys.authenticate(server.key)
    assert principal is not None
    return await server.services.keys.create_login_code(principal, lifetime=60)


def cookie_of(answer: Answer) -> Any:
    return SimpleCookie(answer.headers["Set-Cookie"])[SESSION_COOKIE]


async def signed_in(server: Server) -> dict[str, str]:
    answer = await server.get(f"/login?code={await code_for(server)}", key=None)
    assert (answer.status, answer.headers["Location"]) == (303, "/")
    return {"Cookie": f"{SESSION_COOKIE}={cookie_of(answer).value}"}


async def test_a_login_link_signs_a_browser_in_once(server: Server) -> None:
    path = f"/login?code={await code_for(server)}"
    ahead = await server.get(path, key=None, headers={"Sec-Purpose": "prefetch"})
    assert (ahead.status, ahead.code) == (403, "not_on_prefetch")
    assert (await server.ask("HEAD", path, key=None)).status in (401, 405)

    first = await server.get(path, key=None)
    again = await server.get(path, key=None)
    in_browser = await server.get(path, key=None, headers={"Accept": "text/html"})

    cookie = cookie_of(first)
    assert first.status == 303
    assert (cookie["httponly"], cookie["samesite"]) == (True, "Strict")
    assert (again.status, again.code) == (401, "unauthenticated")
    assert in_browser.headers["Location"] == "/?login=expired"
    mine = {"Cookie": f"{SESSION_COOKIE}={cookie.value}"}
    assert (await server.get("/v1/batches", key=None, headers=mine)).status == 200


@pytest.mark.options(allowed_origins=("https://app.example",))
async def test_a_session_changes_things_for_our_own_pages_only(server: Server) -> None:
    session = await signed_in(server)
    cases = [
        (None, 403),
        ("null", 403),
        ("https://evil.example", 403),
        (f"http://127.0.0.1:{server.port + 1}", 403),
        (f"ftp://127.0.0.1:{server.port}", 403),
        (server.url, 201),
        (f"https://127.0.0.1:{server.port}", 201),
        ("https://app.example", 201),
    ]
    for origin, status in cases:
        headers = {**session, **({"Origin": origin} if origin else {})}
        answer = await server.post("/v1/batches", json={}, key=None, headers=headers)
        assert answer.status == status, origin
    evil = {**session, "Origin": "https://evil.example"}
    upgrade = {**evil, "Connection": "Upgrade", "Upgrade": "websocket"}
    refused = await server.get("/v1/feed", key=None, headers=upgrade)
    assert (refused.status, refused.code) == (403, "foreign_origin")


async def test_signing_out_ends_the_session(server: Server) -> None:
    session = {**await signed_in(server), "Origin": server.url}

    out = await server.post("/logout", key=None, headers=session)

    assert out.status == 204
    assert cookie_of(out).value == ""
    assert (await server.get("/v1/batches", key=None, headers=session)).status == 401


async def test_a_page_signs_in_with_the_code_too(server: Server) -> None:
    body = {"code": await code_for(server)}
    foreign = {"Origin": "https://evil.example"}
    refused = await server.post("/login", key=None, json=body, headers=foreign)
    good = await server.post("/login", key=None, json=body)
    again = await server.post("/login", key=None, json=body)

    assert (refused.status, good.status, again.status) == (403, 204, 401)
    assert cookie_of(good).value


async def test_an_admin_makes_lists_and_revokes_keys(server: Server) -> None:
    admin = await server.key_for(Scope.ADMIN, "default")
    body = {"scope": "uploader", "owner": "acme", "label": "phone", "expires_in": 3600}
    made = await server.post("/v1/keys", json=body, key=admin)
    text, key = made.json["text"], made.json["key"]

    assert made.status == 201
    assert key["expires_at"]
    assert (await server.get("/v1/batches", key=text)).status == 200
    listed = await server.get("/v1/keys", params={"owner": "acme"}, key=admin)
    assert key in listed.json["items"]
    assert text.split("_", 2)[2].encode() not in listed.body
    gone = await server.ask("DELETE", f"/v1/keys/{key['id']}", key=admin)
    assert gone.json["revoked_at"]
    assert (await server.get("/v1/batches", key=text)).status == 401
    none = await server.ask("DELETE", "/v1/keys/none", key=admin)
    assert (none.status, none.code) == (404, "not_found")


async def test_a_key_that_makes_no_sense_is_not_made(server: Server) -> None:
    admin = await server.key_for(Scope.ADMIN, "default")
    id = (await server.batch()).json["id"]
    nowhere = "00000000-0000-0000-0000-000000000001"
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "/scope"),
        ({"scope": "root"}, "/scope"),
        ({"scope": "viewer", "expires_in": 0}, "/expires_in"),
        ({"scope": "viewer", "label": "a\nb"}, "/label"),
        ({"scope": "operator", "batch": id}, "/batch"),
        ({"scope": "uploader", "batch": nowhere}, "/batch"),
        ({"scope": "uploader", "batch": "7"}, "/batch"),
        ({"scope": "uploader", "batch": id, "owner": "globex"}, "/owner"),
    ]
    for body, pointer in cases:
        answer = await server.post("/v1/keys", json=body, key=admin)
        assert (answer.status, answer.pointers) == (422, [pointer]), body
    made = await server.post("/v1/keys", json={"scope": "uploader", "batch": id}, key=admin)
    assert (made.json["key"]["owner"], made.json["key"]["batch"]) == ("acme", id)
