"""A real server for the API: a real socket, real PostgreSQL, a real projector."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from aiohttp import ClientResponse, ClientSession, DummyCookieJar, web

from application.ports.auth import Scope
from interfaces.common.deadlines import Deadlines
from interfaces.common.server import Runner
from interfaces.common.services import Services
from tests.harness import open_test_container, project, serve_http

OWNER = "acme"


@dataclass(frozen=True)
class Answer:
    """A response that was read to its end."""

    status: int
    headers: Any
    body: bytes
    json: Any

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def code(self) -> str:
        return str(self.json["code"])

    @property
    def pointers(self) -> list[str]:
        return [error["pointer"] for error in self.json["errors"]]


@dataclass(frozen=True)
class Server:
    """One serving process; `ask` uses an operator's key by default."""

    services: Services
    app: web.Application
    url: str
    port: int
    key: str
    client: ClientSession
    runner: Runner

    @property
    def unsent(self) -> int:
        """Bytes of responses that wait in this process for clients to take them."""
        assert self.runner.server is not None
        lines = [connection.transport for connection in self.runner.server.connections]
        return sum(line.get_write_buffer_size() for line in lines if line is not None)

    async def ask(self, method: str, path: str, *, key: str | None = "", **options: Any) -> Answer:
        headers = dict(options.pop("headers", {}))
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {key or self.key}")
        async with self.client.request(
            method, path, headers=headers, allow_redirects=False, **options
        ) as response:
            return await read_answer(response)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        return await self.ask("POST", path, **options)

    async def key_for(self, scope: Scope, owner: str = OWNER, batch: UUID | None = None) -> str:
        _, text = await self.services.keys.create(owner=owner, scope=scope, batch=batch)
        return text

    async def batch(self, *paths: str, **fields: Any) -> Answer:
        """Start a batch with files of 10 bytes each."""
        files = [{"path": path, "size": 10} for path in paths]
        answer = await self.post("/v1/batches", json={"files": files, **fields})
        assert answer.status == 201, answer.body
        return answer


async def read_answer(response: ClientResponse) -> Answer:
    body = await response.read()
    is_json = response.content_type.endswith(("/json", "+json")) and body
    decoded = json.loads(body) if is_json else None
    return Answer(response.status, response.headers, body, decoded)


@asynccontextmanager
async def serving(
    url: str, folder: Path, *, deadlines: Deadlines | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """A server with its projector, and an operator's client of it."""
    async with (
        open_test_container(url, folder, **settings) as container,
        project(container),
        serve_http(container, deadlines=deadlines) as server,
        ClientSession(server.url, cookie_jar=DummyCookieJar()) as client,
    ):
        _, key = await container.keys.create(owner=OWNER, scope=Scope.OPERATOR)
        yield Server(
            container.services, server.app, server.url, server.port, key, client, server.runner
        )
