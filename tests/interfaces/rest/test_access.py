"""Every route requires a key and hides resources of other owners."""

from __future__ import annotations

from dataclasses import fields
from typing import Any
from uuid import UUID

from application.ports.auth import Scope
from infrastructure.settings import Settings
from interfaces.common.access import PUBLIC, PUBLIC_PREFIXES
from interfaces.common.services import Services
from interfaces.rest.app import OPERATIONS, build_app
from tests.fakes import NoRemotePreemption
from tests.interfaces.last_position import last_position
from tests.interfaces.rest.server import Answer, Server

TUS = {"Tus-Resumable": "1.0.0"}


def routes() -> list[tuple[str, str]]:
    """Every method and path of the application, however it was added."""
    # No route is called here: the ports stay absent.
    ports: dict[str, Any] = dict.fromkeys(field.name for field in fields(Services))
    ports |= {"settings": Settings(), "remote_preemption": NoRemotePreemption()}
    app = build_app(Services(**ports))
    return sorted(
        {
            (route.method, route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None and route.method != "OPTIONS"
        }
    )


ROUTES = routes()
OF_ADMINS = ("/v1/keys/", "/v1/erasures/")  # their resources have no owner
NAMED = [
    (method, path) for method, path in ROUTES if "{id}" in path and not path.startswith(OF_ADMINS)
]


def is_public(path: str) -> bool:
    return path in PUBLIC or f"{path}/".startswith(PUBLIC_PREFIXES)


def filled(path: str, id: object) -> str:
    return path.replace("{id}", str(id)).replace("{name}", "a").replace("{position}", "1")


async def test_only_public_routes_are_served_without_a_key(server: Server) -> None:
    made_up = f"up_{'0' * 16}_{'a' * 43}"
    basic = {**TUS, "Authorization": "Basic YTpi"}
    for method, path in ROUTES:
        if is_public(path):
            continue
        target = filled(path, UUID(int=1))
        for answer in (
            await server.ask(method, target, key=None, headers=TUS),
            await server.ask(method, target, key=made_up, headers=TUS),
            await server.ask(method, target, key=None, headers=basic),
        ):
            # Those that come after too many failures are refused as such.
            assert answer.status in (401, 429), (method, path)
            if answer.status == 401:
                assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_the_public_paths_are_these() -> None:
    assert {path for _, path in ROUTES if is_public(path)} <= {
        "/",
        "/asyncapi.json",
        "/favicon.ico",
        "/v1/callbacks/{token}",  # a ticket in the path is the credential
        "/v1/callbacks/{token}/content",
        "/healthz",
        "/login",
        "/openapi.json",
        "/readyz",
        "/static",
    } | {path for _, path in ROUTES if path.startswith("/static/")}


async def body_for(server: Server, method: str, path: str, key: str, id: object) -> Answer:
    headers = dict(TUS) if method in ("HEAD", "PATCH", "DELETE") else {}
    options: dict[str, Any] = {}
    if method == "PATCH":
        headers |= {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        options["data"] = b"x"
    if method == "POST" and path.rstrip("/").endswith("/uploads"):
        options["json"] = {"files": [{"path": "intruder"}]}
    if method == "POST" and path.rstrip("/") in ("/v1/uploads/{id}", "/files/{id}"):
        headers |= {**TUS, "X-HTTP-Method-Override": "DELETE"}
    return await server.ask(method, filled(path, id), key=key, headers=headers, **options)


async def test_a_resource_of_another_owner_is_not_found(server: Server) -> None:
    started = await server.batch("a")
    position = started.json["position"]
    await server.services.queries.wait_for(position, timeout=60)
    stranger = await server.key_for(Scope.OPERATOR, "globex")
    others = [
        await server.key_for(Scope.UPLOADER, "globex"),
        await server.key_for(Scope.UPLOADER, "acme", batch=UUID(int=1)),
        await server.key_for(Scope.VIEWER, "globex"),
    ]
    for method, path in NAMED:
        id = started.json["id"] if "batches" in path else started.json["uploads"][0]
        answer = await body_for(server, method, path, stranger, id)
        assert answer.status == 404, (method, path, answer)
        for other in others:
            answer = await body_for(server, method, path, other, id)
            # A scope without the permission is refused as such, whatever the target.
            lacking = answer.json["code"] if answer.json else answer.status
            assert answer.status == 404 or lacking in (403, "scope_missing"), (method, path)
    assert await last_position(server.services.log) == position


async def test_lists_and_histories_hold_nothing_of_others(server: Server) -> None:
    position = (await server.batch("a")).json["position"]
    stranger = await server.key_for(Scope.OPERATOR, "globex")
    admin = await server.key_for(Scope.ADMIN, "default")
    for path in ("/v1/batches", "/v1/history"):
        params = {"min_position": position}
        theirs = await server.get(path, params=params, key=stranger)
        all = await server.get(path, params=params, key=admin)

        assert theirs.json["items"] == []
        assert all.json["items"]


async def test_a_key_limited_to_a_batch_sees_that_one_alone(server: Server) -> None:
    mine, other = await server.batch("a"), await server.batch("b")
    id = mine.json["id"]
    limited = await server.key_for(Scope.UPLOADER, batch=UUID(id))
    params = {"min_position": other.json["position"]}

    assert (await server.get(f"/v1/batches/{id}", params=params, key=limited)).status == 200
    other_path = f"/v1/batches/{other.json['id']}"
    assert (await server.get(other_path, params=params, key=limited)).status == 404
    upload = other.json["uploads"][0]
    assert (await server.get(f"/v1/uploads/{upload}", key=limited)).status == 404
    for path in ("/v1/batches", "/v1/history"):
        refused = await server.get(path, key=limited)
        assert (refused.status, refused.code) == (403, "limited_key")
    assert (await server.post("/v1/batches", json={}, key=limited)).status == 403


ACTS = [
    (operation.method, operation.path)
    for operation in OPERATIONS
    if operation.scopes and Scope.VIEWER not in operation.scopes
]


async def test_a_viewer_changes_nothing(server: Server) -> None:
    started = await server.batch("a")
    viewer = await server.key_for(Scope.VIEWER)
    for method, path in ACTS:
        id = started.json["id"] if "batches" in path else started.json["uploads"][0]
        answer = await body_for(server, method, path, viewer, id)

        assert (answer.status, answer.code) == (403, "scope_missing"), (method, path)
    assert await last_position(server.services.log) == started.json["position"]


async def test_every_response_has_the_security_headers_for_browsers(server: Server) -> None:
    for path in ("/healthz", "/v1/batches", "/v1/nothing", "/v1/history?format=ndjson"):
        headers = (await server.get(path)).headers

        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "aiohttp" not in headers["Server"]


async def test_head_and_options_are_answered(server: Server) -> None:
    head = await server.ask("HEAD", "/v1/batches")
    options = await server.ask("OPTIONS", "/v1/batches", key=None)

    assert (head.status, head.body) == (200, b"")
    assert options.status == 204
    assert options.headers["Allow"] == "GET, HEAD, OPTIONS, POST"
