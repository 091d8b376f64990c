"""A real server for the API: a real socket, real PostgreSQL, a real projector."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import uuid_utils.compat
from aiohttp import ClientResponse, ClientSession, DummyCookieJar, web

from application.ports.auth import Scope
from infrastructure.audit.verifier import PostgresSeals
from infrastructure.auth.keys import PostgresKeys
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.blobs.shared import NotifyPreemption
from infrastructure.erasure.keyring import PostgresErasures
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.jobs.status import PostgresWorkers
from infrastructure.postgres.listener import READ_MODEL, Listener
from infrastructure.postgres.locks import PROJECTOR_LOCK
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.postgres.transfer_limiter import PostgresTransferLimiter
from infrastructure.processors.http import PostgresRemoteSteps
from infrastructure.read_model import projector
from infrastructure.read_model.engine import make_engine
from infrastructure.read_model.history import PostgresHistory
from infrastructure.read_model.queries import PostgresQueries, PostgresUsage
from infrastructure.settings import Settings
from infrastructure.telemetry import PostgresSystemStats
from infrastructure.webhooks.registry import PostgresWebhooks
from interfaces.bootstrap.tasks import supervise
from interfaces.common.deadlines import Deadlines
from interfaces.common.server import Runner
from interfaces.common.services import Services
from interfaces.rest.app import build_app
from tests.support import eventually

OWNER = "acme"


@dataclass(frozen=True)
class Answer:
    """A response that was read to its end."""

    status: int
    headers: Any
    body: bytes
    json: Any

    @property
    def code(self) -> str:
        return str(self.json["code"])

    @property
    def pointers(self) -> list[str]:
        return [error["pointer"] for error in self.json["errors"]]


@dataclass(frozen=True)
class Server:
    """One serving process; `ask` speaks with an operator's key unless told otherwise."""

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
            return await _read(response)

    async def get(self, path: str, **options: Any) -> Answer:
        return await self.ask("GET", path, **options)

    async def post(self, path: str, **options: Any) -> Answer:
        return await self.ask("POST", path, **options)

    async def key_for(self, scope: Scope, owner: str = OWNER, batch: UUID | None = None) -> str:
        _, text = await self.services.keys.create(owner=owner, scope=scope, batch=batch)
        return text

    async def batch(self, *paths: str, **fields: Any) -> Answer:
        """A batch that was started, with files of 10 bytes each."""
        files = [{"path": path, "size": 10} for path in paths]
        answer = await self.post("/v1/batches", json={"files": files, **fields})
        assert answer.status == 201, answer.body
        return answer


async def _read(response: ClientResponse) -> Answer:
    body = await response.read()
    is_json = response.content_type.endswith(("/json", "+json")) and body
    decoded = json.loads(body) if is_json else None
    return Answer(response.status, response.headers, body, decoded)


@asynccontextmanager
async def serving(
    url: str, folder: Path, *, deadlines: Deadlines | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """A server on a free port, as the composition root would make it, with its projector."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        pool = await enter(make_pool(url, name="test", max_size=4))
        listener = await enter(Listener(url))
        log = await enter(PostgresEventLog(pool, await enter(GroupCommitter(url))))
        engine = make_engine(url)
        stack.push_async_callback(engine.dispose)
        blobs = LocalBlobStore(folder)
        stack.callback(blobs.close)
        services = Services(
            settings=Settings(data_dir=folder, **{"min_free_bytes": 0, **settings}),
            log=log,
            wakeups=listener.wakeups(),
            queries=PostgresQueries(engine, listener.wakeups(READ_MODEL)),
            history=PostgresHistory(engine),
            blobs=blobs,
            keys=PostgresKeys(pool, listener),
            now=lambda: datetime.now(UTC),
            new_id=uuid_utils.compat.uuid7,
            elsewhere=NotifyPreemption(pool, listener),
            remote_steps=PostgresRemoteSteps(pool),
            usage=PostgresUsage(pool),
            slots=await enter(PostgresTransferLimiter(url)),
            workers=PostgresWorkers(pool, dead_after=60.0),
            webhooks=PostgresWebhooks(pool),
            seals=PostgresSeals(pool),
            erasures=PostgresErasures(pool),
        )
        await enter(_projecting(url, pool, log, listener))
        yield await enter(_served(services, PostgresSystemStats(pool), deadlines))


@asynccontextmanager
async def _served(
    services: Services, vitals: PostgresSystemStats, deadlines: Deadlines | None
) -> AsyncIterator[Server]:
    app = build_app(services, vitals=vitals)
    runner = Runner(app, access_log=None, shutdown_timeout=5, deadlines=deadlines)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        url = f"http://127.0.0.1:{port}"
        _, key = await services.keys.create(owner=OWNER, scope=Scope.OPERATOR)
        async with ClientSession(url, cookie_jar=DummyCookieJar()) as client:
            yield Server(services, app, url, port, key, client, runner)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _projecting(
    url: str, pool: Pool, log: PostgresEventLog, listener: Listener
) -> AsyncIterator[None]:
    """A projector, from when it has taken over until it is told to stop."""

    async def work() -> None:
        await projector.run(url, log, listener.wakeups())

    task = asyncio.create_task(supervise("projector", work, essential=False))

    async def at_work() -> bool:
        query = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = %s)"
        async with pool.connection() as connection:
            row = await (await connection.execute(query, (PROJECTOR_LOCK.key % 2**32,))).fetchone()
        return row == (True,)

    try:
        await eventually(at_work)
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
