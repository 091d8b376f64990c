"""Runs a server: the parts come up in order, run until told to stop, and go down in order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import msgspec
import structlog

from infrastructure.auth.admin_key import ensure_admin_key
from infrastructure.auth.keys import PostgresKeys
from infrastructure.blobs.belonging import require_belonging
from infrastructure.settings import Settings
from interfaces.bootstrap.blobs import blob_place
from interfaces.bootstrap.database import require_database
from interfaces.bootstrap.door import Door, announced, opened_door
from interfaces.bootstrap.manager import tell_manager
from interfaces.bootstrap.parts import Parts, open_parts
from interfaces.bootstrap.role import Role
from interfaces.bootstrap.roles import check, works_of
from interfaces.bootstrap.site import Site, open_site
from interfaces.bootstrap.stopping import signals
from interfaces.bootstrap.supervision import cancel, first_end, supervise

LOGIN_LIFETIME = 600.0  # seconds for which the printed link can be used, once
LATE = 2.0  # seconds beyond the grace for a part to end

_log = structlog.get_logger(__name__)


class Ready(msgspec.Struct, frozen=True):
    """A server that answers: where, and how to sign in. `url` is None without the role api."""

    url: str | None
    login: str | None
    roles: tuple[Role, ...]


async def serve(
    settings: Settings,
    roles: Sequence[Role],
    ready: Callable[[Ready], None],
    stop: asyncio.Event | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or `stop`, then ends in good order.

    Nothing new is accepted first; running transfers and attempts get `shutdown_grace` seconds,
    and keep what they have; the database goes last. A second signal ends the process at once.
    Raises BadSetting for a pipeline that cannot work, OSError for an address that is taken,
    NoDatabase, WrongBlobs, PartFailed for a part that cannot be kept alive.
    """
    check(settings, roles)
    require_database(settings, roles)
    stopping = stop or asyncio.Event()
    with ExitStack() as stack:
        door = stack.enter_context(opened_door(settings)) if Role.API in roles else None
        if door is not None and settings.processes > 1:
            from interfaces.bootstrap.processes import serve_in_processes

            await serve_in_processes(settings, roles, door, ready, stopping)
            return
        stack.enter_context(signals(stopping))
        async with open_parts(settings) as parts:
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
        tasks = [
            asyncio.create_task(supervise(name, work), name=name) for name, work in works.items()
        ]
        try:
            up()
            await first_end(stopping, tasks)
        finally:
            tell_manager("STOPPING=1")
            await _go_down(site, tasks, parts.services.settings.shutdown_grace)


async def invite(keys: PostgresKeys, settings: Settings, door: Door) -> str | None:
    """A link that signs a browser in, once; None where the admin key was revoked."""
    text = await ensure_admin_key(keys, settings.admin_key_file)
    principal = await keys.authenticate(text)
    if principal is None:
        return None
    code = await keys.issue_login(principal, lifetime=LOGIN_LIFETIME)
    return f"{door.url}/login?code={code}"


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
