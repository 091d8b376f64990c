"""Every principal tries everything that writes: on its batch, another batch, another owner.

One table says who may use each route; the requests are sent to real objects.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import psycopg
import pytest

from application.ports.auth import Scope
from tests.interfaces.last_position import last_position
from tests.interfaces.rest.server import OWNER, Answer, Server
from tests.interfaces.rest.test_access import ROUTES
from tests.interfaces.rest.webhook_api import open_webhook_api
from tests.support import execute

Route: TypeAlias = tuple[str, str]
Refusal: TypeAlias = tuple[int, str]

FOREIGN = "globex"
SCOPE_MISSING: Refusal = (403, "scope_missing")
LIMITED_KEY: Refusal = (403, "limited_key")
NOT_FOUND: Refusal = (404, "not_found")

TUS = {"Tus-Resumable": "1.0.0"}
IETF = {"Upload-Draft-Interop-Version": "8"}
TUS_BODY = {**TUS, "Content-Type": "application/offset+octet-stream"}
IETF_BODY = {**IETF, "Content-Type": "application/partial-upload", "Upload-Complete": "?1"}
TEN_BYTES = b"0123456789"
HOOK = {"url": "https://example.com/hook", "events": ["upload.quarantined"]}  # never delivered


class Principal(NamedTuple):
    """A key of the owner acme; a limited one is for the batch `own`."""

    scope: Scope
    is_limited: bool = False
    owner: str = OWNER


PRINCIPALS = [
    *(Principal(scope, is_limited) for scope in Scope for is_limited in (False, True)),
    Principal(Scope.OPERATOR, owner=FOREIGN),
]

TARGETS = ("own", "other", "foreign")
"""The batch of limited keys, another batch of the same owner, and one of another owner."""


class Rights(NamedTuple):
    """Who may use a route: scopes, and where it acts.

    `place` is `batch` for routes of a batch or upload, `webhook` for those of a webhook, `owner`
    for what creates something beside existing batches, `server` for administration.
    """

    place: str
    scopes: tuple[Scope, ...]

    def refusal(self, principal: Principal, target: str) -> Refusal | None:
        """Return the refusal of this principal, None if it may."""
        admin = principal.scope is Scope.ADMIN
        if not admin and principal.scope not in self.scopes:
            return SCOPE_MISSING
        if self.place in ("owner", "server"):
            return LIMITED_KEY if principal.is_limited else None
        owner = FOREIGN if target == "foreign" else OWNER
        is_visible = admin or principal.owner == owner
        if principal.is_limited and (self.place == "webhook" or target != "own"):
            return NOT_FOUND
        return None if is_visible else NOT_FOUND


SENDS = Rights("batch", (Scope.OPERATOR, Scope.UPLOADER))
OPERATES = Rights("batch", (Scope.OPERATOR,))
STARTS = Rights("owner", (Scope.OPERATOR, Scope.UPLOADER))
SUBSCRIBES = Rights("owner", (Scope.OPERATOR,))
RUNS_WEBHOOK = Rights("webhook", (Scope.OPERATOR,))
ADMINISTERS = Rights("server", ())


@dataclass(frozen=True)
class Write:
    """A request that writes, and the status of its response where it is allowed."""

    allowed: int
    headers: dict[str, str] = field(default_factory=dict)
    data: bytes | None = None
    json: Any = None


def tar_of_one() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        member = tarfile.TarInfo("in-a-tar.txt")
        member.size = len(TEN_BYTES)
        tar.addfile(member, io.BytesIO(TEN_BYTES))
    return archive.getvalue()


FORM = (
    b'--x\r\nContent-Disposition: form-data; name="f"; filename="a"\r\n\r\n'
    + TEN_BYTES
    + b"\r\n--x--\r\n"
)
NDJSON = b'{"path":"a line.txt","size":1}\n'
TUS_CREATION = Write(201, {**TUS_BODY, "Upload-Length": "10"}, TEN_BYTES)
TUS_PART = Write(201, {**TUS_BODY, "Upload-Length": "10", "Upload-Concat": "partial"}, TEN_BYTES)
IETF_CREATION = Write(201, {**IETF, "Upload-Complete": "?0"}, b"01234")
CREATIONS = [TUS_CREATION, TUS_PART, IETF_CREATION]
APPENDS = [
    Write(204, {**TUS_BODY, "Upload-Offset": "0"}, TEN_BYTES),
    Write(201, {**IETF_BODY, "Upload-Offset": "0"}, TEN_BYTES),
]
DELETES = [Write(204, dict(TUS)), Write(204, dict(IETF))]
OVERRIDES = [
    Write(204, {**TUS, "X-HTTP-Method-Override": "DELETE"}),
    Write(204, {**TUS_BODY, "X-HTTP-Method-Override": "PATCH", "Upload-Offset": "0"}, TEN_BYTES),
]

TABLE: dict[Route, tuple[Rights, list[Write]]] = {
    ("POST", "/v1/batches"): (
        STARTS,
        [
            Write(201, json={"label": "a", "files": [{"path": "a"}]}),
            Write(201, {"Content-Type": "multipart/form-data; boundary=x"}, FORM),
        ],
    ),
    ("PATCH", "/v1/batches/{id}"): (OPERATES, [Write(202, json={"label": "renamed"})]),
    ("POST", "/v1/batches/{id}/seal"): (SENDS, [Write(202)]),
    ("POST", "/v1/batches/{id}/pause"): (OPERATES, [Write(202)]),
    ("POST", "/v1/batches/{id}/resume"): (OPERATES, [Write(202)]),
    ("POST", "/v1/batches/{id}/cancel"): (OPERATES, [Write(202, json={"reason": "enough"})]),
    ("POST", "/v1/batches/{id}/priority"): (OPERATES, [Write(202, json={"priority": 5})]),
    ("POST", "/v1/batches/{id}/retry"): (OPERATES, [Write(202)]),
    ("POST", "/v1/batches/{id}/uploads"): (
        SENDS,
        [
            Write(200, json={"files": [{"path": "listed.txt", "size": 1}]}),
            Write(200, {"Content-Type": "application/x-ndjson"}, NDJSON),
            Write(200, {"Content-Type": "application/x-tar"}, tar_of_one()),
            *CREATIONS,
        ],
    ),
    ("POST", "/v1/uploads"): (STARTS, CREATIONS),
    ("POST", "/files"): (STARTS, [TUS_CREATION, IETF_CREATION]),
    ("POST", "/v1/uploads/{id}/cancel"): (SENDS, [Write(202, json={"reason": "enough"})]),
    # What is neither failed nor in quarantine is refused by its state, after every check.
    ("POST", "/v1/uploads/{id}/retry"): (OPERATES, [Write(409)]),
    ("POST", "/v1/uploads/{id}/release"): (OPERATES, [Write(409, json={"reason": "harmless"})]),
    **{
        (method, f"{collection}/{{id}}"): (SENDS, writes)
        for collection in ("/v1/uploads", "/files")
        for method, writes in (("PATCH", APPENDS), ("DELETE", DELETES), ("POST", OVERRIDES))
    },
    ("POST", "/v1/webhooks"): (SUBSCRIBES, [Write(201, json=HOOK)]),
    ("PATCH", "/v1/webhooks/{id}"): (RUNS_WEBHOOK, [Write(200, json={"label": "x"})]),
    ("DELETE", "/v1/webhooks/{id}"): (RUNS_WEBHOOK, [Write(204)]),
    ("POST", "/v1/webhooks/{id}/rotate"): (RUNS_WEBHOOK, [Write(200)]),
    ("POST", "/v1/webhooks/{id}/test"): (RUNS_WEBHOOK, [Write(202)]),
    ("POST", "/v1/webhooks/{id}/disable"): (RUNS_WEBHOOK, [Write(200)]),
    ("POST", "/v1/webhooks/{id}/enable"): (RUNS_WEBHOOK, [Write(200)]),
    ("POST", "/v1/webhooks/{id}/redeliver"): (
        RUNS_WEBHOOK,
        [Write(202, json={"since": "2026-01-01T00:00:00Z"})],
    ),
    ("POST", "/v1/webhooks/{id}/deliveries/{position}/redeliver"): (RUNS_WEBHOOK, [Write(202)]),
    ("POST", "/v1/keys"): (ADMINISTERS, [Write(201, json={"scope": "viewer"})]),
    ("DELETE", "/v1/keys/{id}"): (ADMINISTERS, [Write(200)]),
    ("POST", "/v1/erasures"): (ADMINISTERS, [Write(202, json={"owner": "nobody"})]),
}
OTHERS = {
    ("POST", "/login"): "a one-time code in the body is the credential",
    ("POST", "/logout"): "ends the session of the request alone",
    ("POST", "/v1/callbacks/{token}"): "a token in the path is the credential",
}


def without_slash(route: Route) -> Route:
    return route[0], route[1].rstrip("/") or "/"


WRITES = [route for route in ROUTES if route[0] not in ("GET", "HEAD")]


def test_every_route_that_writes_has_a_row() -> None:
    """A new route fails here until the table states who may use it."""
    assert {without_slash(route) for route in WRITES} == set(TABLE) | set(OTHERS)


@dataclass(frozen=True)
class Objects:
    """Ids of objects by what a path names."""

    batch: str
    upload: str
    webhook: str
    key: str


class Stage:
    """A server with objects of both owners, and keys of all principals."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._admin = ""
        self._webhooks: dict[str, str] = {}

    async def open(self) -> None:
        self._admin = await self.server.key_for(Scope.ADMIN, "operations")
        for owner in (OWNER, FOREIGN):
            self._webhooks[owner] = await self.webhook(owner)

    async def webhook(self, owner: str) -> str:
        """A webhook with a failed delivery, of position 1."""
        form = {**HOOK, "owner": owner}
        answer = await self.server.post("/v1/webhooks", json=form, key=self._admin)
        assert answer.status == 201, answer
        id = str(answer.json["webhook"]["id"])
        execute(
            str(self.server.services.settings.database_url),
            "INSERT INTO webhooks.deliveries"
            " (webhook, position, lane, stream, version, type, state, queued_at, ended_at)"
            " VALUES (%s, 1, %s, %s, 1, 'batch.started', 'failed', now(), now())",
            *(id, id, id),
        )
        return id

    async def objects(self, target: str, *, webhook: str | None = None) -> Objects:
        owner = FOREIGN if target == "foreign" else OWNER
        form = {"owner": owner, "files": [{"path": "a.txt", "size": len(TEN_BYTES)}]}
        answer = await self.server.post("/v1/batches", json=form, key=self._admin)
        assert answer.status == 201, answer
        key = (await self.server.key_for(Scope.VIEWER, owner)).split("_")[1]
        return Objects(
            answer.json["id"], answer.json["uploads"][0], webhook or self._webhooks[owner], key
        )

    async def key(self, principal: Principal, own: Objects) -> str:
        batch = UUID(own.batch) if principal.is_limited else None
        return await self.server.key_for(principal.scope, principal.owner, batch)

    async def send(self, route: Route, write: Write, to: Objects, key: str) -> Answer:
        method, path = route
        ids = {"batches": to.batch, "webhooks": to.webhook, "keys": to.key}
        kind = path.split("/")[2] if path.startswith("/v1/") else "uploads"
        path = path.replace("{id}", ids.get(kind, to.upload)).replace("{position}", "1")
        return await self.server.ask(
            method, path, key=key, headers=write.headers, data=write.data, json=write.json
        )


@asynccontextmanager
async def open_stage(url: str, folder: Path) -> AsyncIterator[Stage]:
    async with open_webhook_api(url, folder) as api:
        stage = Stage(api.server)
        await stage.open()
        yield stage


def stored(url: str) -> list[tuple[Any, ...]]:
    """Return the rows that a request could change beside the log."""
    with psycopg.connect(url) as connection:
        return [
            row
            for table in ("api_keys", "webhooks.secrets", "webhooks.deliveries", "audit.erasures")
            for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2".encode())
        ]


async def test_no_principal_writes_beyond_its_limits(database_url: str, tmp_path: Path) -> None:
    async with open_stage(database_url, tmp_path) as stage:
        objects = {target: await stage.objects(target) for target in TARGETS}
        keys = {principal: await stage.key(principal, objects["own"]) for principal in PRINCIPALS}
        head, rows = await last_position(stage.server.services.log), stored(database_url)
        for route in WRITES:
            rights, writes = TABLE.get(without_slash(route), (None, []))
            for principal in PRINCIPALS if rights else ():
                for target in TARGETS:
                    refusal = rights.refusal(principal, target) if rights else None
                    for write in writes if refusal else ():
                        answer = await stage.send(route, write, objects[target], keys[principal])
                        found = (answer.status, answer.json and answer.code)
                        assert found == refusal, (route, principal, target, write)

        assert await last_position(stage.server.services.log) == head
        assert stored(database_url) == rows


async def test_every_principal_writes_within_its_limits(database_url: str, tmp_path: Path) -> None:
    """The refusals above are due to limits, not to requests that nobody could send."""
    async with open_stage(database_url, tmp_path) as stage:
        for route, (rights, writes) in TABLE.items():
            for principal in PRINCIPALS:
                allowed = [one for one in TARGETS if rights.refusal(principal, one) is None]
                for write in writes if allowed else ():
                    webhook = None
                    if rights is RUNS_WEBHOOK:
                        webhook = await stage.webhook(FOREIGN if allowed[0] == "foreign" else OWNER)
                    to = await stage.objects(allowed[0], webhook=webhook)
                    answer = await stage.send(route, write, to, await stage.key(principal, to))
                    assert answer.status == write.allowed, (route, principal, write, answer)


@pytest.mark.parametrize("scope", [Scope.ADMIN, Scope.OPERATOR])
async def test_only_uploaders_and_viewers_are_limited_to_a_batch(
    database_url: str, tmp_path: Path, scope: Scope
) -> None:
    async with open_stage(database_url, tmp_path) as stage:
        own = await stage.objects("own")
        admin = await stage.server.key_for(Scope.ADMIN)
        form = {"scope": scope.value, "batch": own.batch}

        refused = await stage.server.post("/v1/keys", json=form, key=admin)

    assert (refused.status, refused.pointers) == (422, ["/batch"])


async def test_nobody_starts_something_for_another_owner(database_url: str, tmp_path: Path) -> None:
    async with open_stage(database_url, tmp_path) as stage:
        own = await stage.objects("own")
        for principal in PRINCIPALS:
            if principal.scope is Scope.ADMIN or principal.owner == FOREIGN:
                continue
            key = await stage.key(principal, own)
            for path, form in (("/v1/batches", {}), ("/v1/webhooks", HOOK)):
                answer = await stage.server.post(path, json={**form, "owner": FOREIGN}, key=key)
                expected = SCOPE_MISSING
                if principal.is_limited and (
                    principal.scope is Scope.OPERATOR
                    or (principal.scope is Scope.UPLOADER and path == "/v1/batches")
                ):
                    expected = LIMITED_KEY
                assert (answer.status, answer.code) == expected, (principal, path)


async def test_a_limited_key_concatenates_only_parts_of_its_batch(
    database_url: str, tmp_path: Path
) -> None:
    async with open_stage(database_url, tmp_path) as stage:
        objects = {target: await stage.objects(target) for target in TARGETS}
        admin = await stage.server.key_for(Scope.ADMIN)
        limited = await stage.key(Principal(Scope.UPLOADER, is_limited=True), objects["own"])
        to_own = ("POST", "/v1/batches/{id}/uploads")
        for target in (*TARGETS, "no batch"):
            route = ("POST", "/v1/uploads") if target == "no batch" else to_own
            place = objects["own" if target == "no batch" else target]
            key = await stage.server.key_for(Scope.UPLOADER) if target == "no batch" else admin
            part = await stage.send(route, TUS_PART, place, key)
            assert part.status == 201, part
            concat = {**TUS, "Upload-Concat": f"final;{part.headers['Location']}"}
            answer = await stage.send(to_own, Write(201, concat), objects["own"], limited)

            assert answer.status == (201 if target == "own" else 400), (target, answer)
