"""A server process: its parts come up in order, run until told to stop, and go down in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import structlog

from infrastructure.blobs.belonging import require_belonging
from infrastructure.settings import Settings
from interfaces.bootstrap.blobs import blob_place
from interfaces.bootstrap.connections import require_connections
from interfaces.bootstrap.door import Door, announced
from interfaces.bootstrap.invitation import Ready, invite
from interfaces.bootstrap.manager import tell_manager
from interfaces.bootstrap.parts import Parts, open_parts
from interfaces.bootstrap.role import Role
from interfaces.bootstrap.roles import LED_PARTS, works_of
from interfaces.bootstrap.site import Site, open_site
from interfaces.bootstrap.stopping import signals
from interfaces.bootstrap.supervision import cancel, first_end, supervise

LATE = 2.0  # seconds beyond the grace for a part to end

_log = structlog.get_logger(__name__)


async def serve_alone(
    settings: Settings,
    roles: Sequence[Role],
    door: Door | None,
    ready: Callable[[Ready], None],
    stopping: asyncio.Event,
) -> None:
    """Serves these roles in this process.

    Raises what `require_connections`, `open_parts` and `keep` raise.
    """
    with ExitStack() as stack:
        stack.enter_context(signals(stopping))
        pools = await require_connections(settings, roles)
        async with open_parts(settings, pools) as parts:
            login = None if door is None else await invite(parts.keys, settings, door)

            def up() -> None:
                if door is not None:
                    stack.enter_context(announced(settings.data_dir, door.url))
                tell_manager("READY=1")
                ready(Ready(door.url if door else None, login, tuple(roles)))

            await keep(parts, roles, door.sockets if door else (), up, stopping)


async def keep(
    parts: Parts,
    roles: Sequence[Role],
    sockets: Sequence[socket.socket],
    up: Callable[[], None],
    stopping: asyncio.Event,
) -> None:
    """Keeps what these roles run alive, calls `up` once it is, and ends it in good order.

    Raises WrongBlobs for a store that is not that of the database, PartFailed.
    """
    async with parts.pool.connection() as connection:
        await require_belonging(connection, parts.blobs, blob_place(parts.services.settings))
    works = works_of(parts, roles)
    works["database"] = parts.database.keep_running
    async with open_site(parts, sockets) as site:
        works |= site.works
        # A worker that cannot live must not end the API that runs beside it.
        optional = {*LED_PARTS, "worker"} if sockets else LED_PARTS
        tasks = [
            asyncio.create_task(supervise(name, work, essential=name not in optional), name=name)
            for name, work in works.items()
        ]
        try:
            up()
            await first_end(stopping, tasks)
        finally:
            tell_manager("STOPPING=1")
            await _go_down(site, tasks, parts.services.settings.shutdown_grace)


async def _go_down(site: Site, tasks: list[asyncio.Task[None]], grace: float) -> None:
    """First the door, then the workers, then what follows the log; the database goes on."""
    _log.info("stopping")
    by_name = {task.get_name(): task for task in tasks}
    database = by_name.pop("database")
    workers = [by_name.pop("worker")] if "worker" in by_name else []
    await asyncio.gather(site.close(), cancel(*workers, within=grace + LATE))
    await cancel(*by_name.values(), within=LATE, insist=True)
    await cancel(database, within=LATE, insist=True)
    _log.info("stopped")
