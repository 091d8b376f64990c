"""A real server for uploads: real sockets, real PostgreSQL, real files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import uuid_utils.compat
from aiohttp import ClientSession, web

from application.ports.auth import Scope
from application.transfers.transfers import Transfers
from domain.event import topic_of
from infrastructure.auth.keys import PostgresKeys
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.blobs.shared import NotifyPreemption
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.listener import Listener
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.postgres.transfer_limiter import PostgresTransferLimiter
from infrastructure.read_model.engine import make_engine
from infrastructure.read_model.queries import PostgresQueries, PostgresUsage
from infrastructure.settings import Settings
from interfaces.common.access import access_middleware
from interfaces.common.failed_attempts import ATTEMPTS, FailedAttempts
from interfaces.common.forwarded import host_middleware
from interfaces.common.middleware import add_response_headers, allow_origins, correlation_middleware
from interfaces.common.problems import problem_middleware
from interfaces.common.responses import STREAMS, Streams
from interfaces.common.routing import add_operations
from interfaces.common.running_requests import RUNNING, RunningRequests, watch_running_requests
from interfaces.common.server import Runner
from interfaces.common.services import SERVICES, Services
from interfaces.rest import batch_creation, batches
from interfaces.rest.app import add_routes
from interfaces.uploads.setup import TRANSFERS
from tests.stored import uploads_in
from tests.support import path_of

OWNER = "acme"
TUS = {"Tus-Resumable": "1.0.0"}
EASY: dict[str, Any] = {"min_free_bytes": 0, "shutdown_grace": 0.1}
BYTES = {**TUS, "Content-Type": "application/offset+octet-stream"}


@dataclass(frozen=True)
class Server:
    """One serving process, and a client of it that holds an uploader's key."""

    services: Services
    url: str
    port: int
    key: str
    client: ClientSession
    transfers: Transfers
    running: RunningRequests
    pool: Pool

    async def create(self, size: int, **headers: str) -> str:
        """Announces an upload and returns the path of its resource."""
        named = {**TUS, "Upload-Length": str(size), **headers}
        async with self.client.post("/v1/uploads", headers=named) as answer:
            assert answer.status == 201, await answer.text()
            return path_of(answer.headers["Location"])

    async def offset(self, location: str) -> int:
        async with self.client.head(location, headers=TUS) as answer:
            assert answer.status == 200
            return int(answer.headers["Upload-Offset"])

    async def patch(self, location: str, offset: int, data: Any, **headers: str) -> int:
        """The status of a PATCH."""
        said = {**BYTES, "Upload-Offset": str(offset), **headers}
        async with self.client.patch(location, data=data, headers=said) as answer:
            return answer.status

    async def content(self, location: str) -> bytes:
        async with self.client.get(f"{location}/content") as answer:
            assert answer.status == 200
            return await answer.read()

    async def topics(self, location: str) -> list[str]:
        """What was recorded of the upload."""
        events = await self.services.log.stream(upload_in(location))
        return [topic_of(recorded.event) for recorded in events]

    async def key_with(self, scope: Scope, owner: str = OWNER, batch: UUID | None = None) -> str:
        _, text = await self.services.keys.create(owner=owner, scope=scope, batch=batch)
        return text

    def as_(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}"}


def stored_files(folder: Path) -> list[Path]:
    """For every blob of an upload, the file in which its bytes are kept."""
    return list(uploads_in(folder).values())


def upload_in(location: str) -> UUID:
    return UUID(location.rpartition("/")[2])


@asynccontextmanager
async def serving(url: str, folder: Path, **settings: Any) -> AsyncIterator[Server]:
    """A server on a free port, as the composition root would make it."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        pool = await enter(make_pool(url, name="test", max_size=4))
        listener = await enter(Listener(url))
        log = await enter(PostgresEventLog(pool, await enter(GroupCommitter(url))))
        engine = make_engine(url)
        stack.push_async_callback(engine.dispose)
        blobs = LocalBlobStore(folder)
        stack.callback(blobs.close)
        unused = cast(Any, None)  # no route here asks for these
        services = Services(
            settings=Settings(data_dir=folder, **{**EASY, **settings}),
            log=log,
            wakeups=listener.wakeups(),
            queries=PostgresQueries(engine, listener.wakeups()),
            history=unused,
            blobs=blobs,
            keys=PostgresKeys(pool, listener),
            now=lambda: datetime.now(UTC),
            new_id=uuid_utils.compat.uuid7,
            elsewhere=NotifyPreemption(pool, listener),
            usage=PostgresUsage(pool),
            slots=await enter(PostgresTransferLimiter(url)),
            remote_steps=unused,
            workers=unused,
            webhooks=unused,
            erasures=unused,
            seals=unused,
        )
        yield await enter(_served(services, pool))


@asynccontextmanager
async def _served(services: Services, pool: Pool) -> AsyncIterator[Server]:
    middlewares = [
        correlation_middleware,
        problem_middleware,
        host_middleware,
        access_middleware,
    ]
    app = web.Application(middlewares=middlewares)
    app[SERVICES] = services
    app[ATTEMPTS] = FailedAttempts()
    app[STREAMS] = Streams()
    watch_running_requests(app, services.keys)
    app.on_response_prepare.append(add_response_headers)
    app.on_response_prepare.append(allow_origins)
    add_routes(app)
    add_operations(app, (*batch_creation.OPERATIONS, *batches.OPERATIONS))
    runner = Runner(app, read_bufsize=services.settings.read_buffer, shutdown_timeout=5)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    _, key = await services.keys.create(owner=OWNER, scope=Scope.UPLOADER)
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {key}"}
    try:
        async with ClientSession(url, headers=headers) as client:
            yield Server(services, url, port, key, client, app[TRANSFERS], app[RUNNING], pool)
    finally:
        await runner.cleanup()
