"""The real container on a test's own database, and a real HTTP server on it, in the test's loop.

`interfaces.bootstrap` makes everything here. A test overrides settings, deadlines and limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.postgres.locks import PROJECTOR_LOCK
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.read_model import projector
from infrastructure.read_model.feed import PostgresFeed
from infrastructure.settings import Settings
from infrastructure.telemetry import PostgresSystemStats
from interfaces.bootstrap.container import Container, open_container
from interfaces.bootstrap.tasks import supervise
from interfaces.common.deadlines import Deadlines
from interfaces.common.server import Runner
from interfaces.feed.connection import FeedLimits
from interfaces.feed.endpoints import HUB
from interfaces.feed.hub import FeedHub
from interfaces.rest.app import build_app
from tests.support import eventually

# A test neither depends on the free space of its machine nor waits for clients at its end.
DEFAULTS: dict[str, Any] = {"min_free_bytes": 0, "shutdown_grace": 0.1}
SHUTDOWN_TIMEOUT = 5.0  # seconds until connections are cut at the end of a test

_IS_PROJECTING = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = %s)"


@dataclass(frozen=True)
class HttpServer:
    """One application that listens on a free port."""

    container: Container
    app: web.Application
    runner: Runner
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def open_test_container(url: str, folder: Path, **settings: Any) -> AsyncIterator[Container]:
    """The container of a server with this database and data folder."""
    chosen = Settings(data_dir=folder, database_url=url, **{**DEFAULTS, **settings})
    async with open_container(chosen) as container:
        yield container


@asynccontextmanager
async def open_log(
    url: str, codec: Codec = CODEC, *, pool: Pool | None = None
) -> AsyncIterator[PostgresEventLog]:
    """The event log alone, for tests of what stands on it; reads through `pool` if given."""
    async with AsyncExitStack() as stack:
        if pool is None:
            pool = await stack.enter_async_context(make_pool(url, name="test", max_size=4))
        committer = await stack.enter_async_context(GroupCommitter(url, codec=codec))
        yield await stack.enter_async_context(PostgresEventLog(pool, committer, codec=codec))


@asynccontextmanager
async def serve_http(
    container: Container,
    *,
    port: int = 0,
    deadlines: Deadlines | None = None,
    limits: FeedLimits | None = None,
) -> AsyncIterator[HttpServer]:
    """The whole application of the container, with its feed, as a server process has it."""
    services = container.services
    app = build_app(services, vitals=PostgresSystemStats(container.pool))
    wakeups = container.listener.wakeups(READ_MODEL)
    feed = PostgresFeed(container.pool)
    app[HUB] = FeedHub(feed, wakeups, container.keys, services.settings, services.now, limits)
    runner = Runner(
        app,
        access_log=None,
        shutdown_timeout=SHUTDOWN_TIMEOUT,
        read_bufsize=services.settings.read_buffer,
        deadlines=deadlines,
    )
    async with running(app[HUB].run()):
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            yield HttpServer(container, app, runner, runner.addresses[0][1])
        finally:
            await runner.cleanup()


@asynccontextmanager
async def project(container: Container) -> AsyncIterator[None]:
    """A projector, from the moment it leads until the end."""

    async def leads() -> bool:
        lock = PROJECTOR_LOCK.key % 2**32
        async with container.pool.connection() as connection:
            row = await (await connection.execute(_IS_PROJECTING, (lock,))).fetchone()
        return row == (True,)

    async with running(supervise_projector(container)):
        await eventually(leads)
        yield


async def supervise_projector(container: Container) -> None:
    """Run a projector as a server does, without the check of its tables."""

    async def work() -> None:
        await projector.run(container.database.url, container.log, container.listener.wakeups())

    await supervise("projector", work, essential=False)


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """A task that is cancelled at the end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
