"""A server process: its components start in order, run until a stop, and end in reverse order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

import structlog
from aiohttp import web

from infrastructure.blobs.shared import check_store_identity
from infrastructure.postgres.listener import READ_MODEL
from infrastructure.read_model.feed import PostgresFeed
from infrastructure.settings import Settings
from infrastructure.telemetry import PostgresSystemStats
from interfaces.bootstrap import listen
from interfaces.bootstrap.container import (
    Container,
    Role,
    describe_blob_location,
    open_container,
    require_connections,
    require_database,
    validate_settings,
)
from interfaces.bootstrap.tasks import (
    LED_PARTS,
    TaskFactory,
    background_tasks,
    cancel_within,
    supervise,
    wait_for_stop_or_failure,
)
from interfaces.common.server import Runner
from interfaces.feed.endpoints import HUB
from interfaces.feed.hub import FeedHub
from interfaces.rest.app import build_app

# A server that runs until a stop is requested, in one process or in several.


async def serve(
    settings: Settings,
    roles: Sequence[Role],
    ready: Callable[[listen.Ready], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or `stop`, then ends in good order.

    Nothing new is accepted first; running transfers and attempts get `shutdown_grace` seconds,
    and keep what they have; the database goes last. A second signal ends the process at once.
    Raises BadSetting for a pipeline that cannot work, OSError for an address that is taken,
    NoDatabase, WrongBlobs, PartFailed for a part that cannot be kept alive.
    """
    validate_settings(settings, roles)
    require_database(settings, roles)
    stopping = stop or asyncio.Event()
    with ExitStack() as stack:
        door = stack.enter_context(listen.bind_sockets(settings)) if Role.API in roles else None
        # Either is imported when it is needed: the parent of several processes stays small.
        if door is not None and settings.processes > 1:
            from interfaces.bootstrap.processes import serve_in_processes

            await serve_in_processes(settings, roles, door, ready, stopping)
        else:
            await serve_single_process(settings, roles, door, ready, stopping)


# The HTTP side of a server process: one application on the sockets it is given.

BACKLOG = 1024


class HttpServer:
    """HTTP listener of this process; without the role api there is none."""

    def __init__(self) -> None:
        self.works: dict[str, TaskFactory] = {}

    async def close(self) -> None:
        """Stops accepting, sends feed clients away, and lets running requests end."""


class HttpSite(HttpServer):
    """One application."""

    def __init__(self, runner: web.AppRunner, feed: FeedHub) -> None:
        super().__init__()
        self.works["feed"] = feed.run
        self._runner = runner

    async def close(self) -> None:
        await self._runner.cleanup()


@asynccontextmanager
async def open_http_server(
    parts: Container, sockets: Sequence[socket.socket]
) -> AsyncIterator[HttpServer]:
    """Listen on these sockets; there are none without the role api.

    Raises OSError if another process has begun to listen there since they were bound.
    """
    if not sockets:
        yield HttpServer()
        return
    settings = parts.services.settings
    vitals = PostgresSystemStats(parts.pool, settings.worker_dead_after)
    app = build_app(parts.services, vitals=vitals)
    app[HUB] = FeedHub(
        PostgresFeed(parts.pool),
        parts.listener.wakeups(READ_MODEL),
        parts.keys,
        settings,
        parts.services.now,
    )
    runner = Runner(
        app,
        access_log=None,
        shutdown_timeout=settings.shutdown_grace,
        read_bufsize=settings.read_buffer,
    )
    await runner.setup()
    try:
        for opened in sockets:
            # Not left to uvloop, which reports no error if another process listens by now:
            # clients would send their keys to that process.
            opened.listen(BACKLOG)
            await web.SockSite(runner, opened, backlog=BACKLOG).start()
        yield HttpSite(runner, app[HUB])
    finally:
        await runner.cleanup()


CANCEL_AFTER_GRACE = 2.0  # seconds beyond the grace for a part to end

_log = structlog.get_logger(__name__)


async def serve_single_process(
    settings: Settings,
    roles: Sequence[Role],
    door: listen.ListenSockets | None,
    ready: Callable[[listen.Ready], None],
    stopping: asyncio.Event,
) -> None:
    """Serves these roles in this process.

    Raises what `require_connections`, `open_parts` and `keep` raise.
    """
    with ExitStack() as stack:
        stack.enter_context(listen.stop_on_signals(stopping))
        pools = await require_connections(settings, roles)
        async with open_container(settings, pools) as parts:
            login = None if door is None else await listen.login_link(parts.keys, settings, door)

            def up() -> None:
                if door is not None:
                    stack.enter_context(listen.server_file(settings.data_dir, door.url))
                listen.sd_notify("READY=1")
                ready(listen.Ready(door.url if door else None, login, tuple(roles)))

            await run_until_stopped(parts, roles, door.sockets if door else (), up, stopping)


async def run_until_stopped(
    parts: Container,
    roles: Sequence[Role],
    sockets: Sequence[socket.socket],
    up: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Keeps what these roles run alive, calls `up` once it is, and ends it in good order.

    Raises WrongBlobs for a store that is not that of the database, PartFailed.
    """
    async with parts.pool.connection() as connection:
        await check_store_identity(
            connection, parts.blobs, describe_blob_location(parts.services.settings)
        )
    works = background_tasks(parts, roles)
    works["database"] = parts.database.keep_running
    async with open_http_server(parts, sockets) as site:
        works |= site.works
        # A worker that cannot live must not end the API that runs beside it.
        optional = {*LED_PARTS, "worker"} if sockets else LED_PARTS
        tasks = [
            asyncio.create_task(supervise(name, work, essential=name not in optional), name=name)
            for name, work in works.items()
        ]
        try:
            up()
            await wait_for_stop_or_failure(stopping, tasks)
        finally:
            listen.sd_notify("STOPPING=1")
            await _go_down(site, tasks, parts.services.settings.shutdown_grace)


async def _go_down(site: HttpServer, tasks: list[asyncio.Task[None]], grace: float) -> None:
    """First the door, then the workers, then what follows the log; the database goes on."""
    _log.info("stopping")
    by_name = {task.get_name(): task for task in tasks}
    database = by_name.pop("database")
    workers = [by_name.pop("worker")] if "worker" in by_name else []
    await asyncio.gather(site.close(), cancel_within(*workers, within=grace + CANCEL_AFTER_GRACE))
    await cancel_within(*by_name.values(), within=CANCEL_AFTER_GRACE, insist=True)
    await cancel_within(database, within=CANCEL_AFTER_GRACE, insist=True)
    _log.info("stopped")
