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
    """Serve until SIGTERM, SIGINT or `stop`, then shut down gracefully.

    New requests are refused first. Running transfers and attempts get `shutdown_grace` seconds, and
    keep the bytes that arrived; the database ends last. A second signal ends the process at once.

    Raises BadSetting for a pipeline that cannot run, OSError for an address in use, NoDatabase,
    BlobStoreMismatch, TaskFailed for a component that fails again and again.
    """
    validate_settings(settings, roles)
    require_database(settings, roles)
    stopping = stop or asyncio.Event()
    with ExitStack() as stack:
        listeners = (
            stack.enter_context(listen.bind_sockets(settings)) if Role.API in roles else None
        )
        # Imported only if needed: the parent of several processes stays small.
        if listeners is not None and settings.processes > 1:
            from interfaces.bootstrap.processes import serve_in_processes

            await serve_in_processes(settings, roles, listeners, ready, stopping)
        else:
            await serve_single_process(settings, roles, listeners, ready, stopping)


# The HTTP side of a server process: one application on the sockets it is given.

BACKLOG = 1024


class HttpServer:
    """HTTP listener of this process; without the role api it does nothing."""

    def __init__(self) -> None:
        self.tasks: dict[str, TaskFactory] = {}

    async def close(self) -> None:
        """Stop accepting, close feed connections with a code to reconnect, let requests end."""


class HttpSite(HttpServer):
    """The web application on its sockets."""

    def __init__(self, runner: web.AppRunner, feed: FeedHub) -> None:
        super().__init__()
        self.tasks["feed"] = feed.run
        self._runner = runner

    async def close(self) -> None:
        await self._runner.cleanup()


@asynccontextmanager
async def open_http_server(
    container: Container, sockets: Sequence[socket.socket]
) -> AsyncIterator[HttpServer]:
    """Listen on these sockets; there are none without the role api.

    Raises OSError if another process has begun to listen there since they were bound.
    """
    if not sockets:
        yield HttpServer()
        return
    settings = container.services.settings
    vitals = PostgresSystemStats(container.pool, settings.worker_dead_after)
    app = build_app(container.services, vitals=vitals)
    app[HUB] = FeedHub(
        PostgresFeed(container.pool),
        container.listener.wakeups(READ_MODEL),
        container.keys,
        settings,
        container.services.now,
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


CANCEL_AFTER_GRACE = 2.0  # seconds beyond the grace period for a component to end

_log = structlog.get_logger(__name__)


async def serve_single_process(
    settings: Settings,
    roles: Sequence[Role],
    listeners: listen.ListenSockets | None,
    ready: Callable[[listen.Ready], None],
    stopping: asyncio.Event,
) -> None:
    """Serve these roles in this process.

    Raises what `require_connections`, `open_container` and `supervise` raise.
    """
    with ExitStack() as stack:
        stack.enter_context(listen.stop_on_signals(stopping))
        pools = await require_connections(settings, roles)
        async with open_container(settings, pools) as container:
            login = (
                None
                if listeners is None
                else await listen.login_link(container.keys, settings, listeners)
            )

            def up() -> None:
                if listeners is not None:
                    stack.enter_context(listen.server_file(settings.data_dir, listeners.url))
                listen.sd_notify("READY=1")
                ready(listen.Ready(listeners.url if listeners else None, login, tuple(roles)))

            await run_until_stopped(
                container, roles, listeners.sockets if listeners else (), up, stopping
            )


async def run_until_stopped(
    container: Container,
    roles: Sequence[Role],
    sockets: Sequence[socket.socket],
    up: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Keep the components of these roles running until a stop; call `up` once they run.

    Raises BlobStoreMismatch for a store that is not that of the database, TaskFailed.
    """
    async with container.pool.connection() as connection:
        await check_store_identity(
            connection, container.blobs, describe_blob_location(container.services.settings)
        )
    factories = background_tasks(container, roles)
    factories["database"] = container.database.keep_running
    async with open_http_server(container, sockets) as site:
        factories |= site.tasks
        # A worker that cannot run must not end the API that runs beside it.
        optional = {*LED_PARTS, "worker"} if sockets else LED_PARTS
        tasks = [
            asyncio.create_task(supervise(name, work, essential=name not in optional), name=name)
            for name, work in factories.items()
        ]
        try:
            up()
            await wait_for_stop_or_failure(stopping, tasks)
        finally:
            listen.sd_notify("STOPPING=1")
            await _shut_down(site, tasks, container.services.settings.shutdown_grace)


async def _shut_down(site: HttpServer, tasks: list[asyncio.Task[None]], grace: float) -> None:
    """End the listener and the worker first, then what follows the log, then the database."""
    _log.info("stopping")
    by_name = {task.get_name(): task for task in tasks}
    database = by_name.pop("database")
    workers = [by_name.pop("worker")] if "worker" in by_name else []
    await asyncio.gather(site.close(), cancel_within(*workers, within=grace + CANCEL_AFTER_GRACE))
    await cancel_within(*by_name.values(), within=CANCEL_AFTER_GRACE, insist=True)
    await cancel_within(database, within=CANCEL_AFTER_GRACE, insist=True)
    _log.info("stopped")
