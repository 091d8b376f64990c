"""Runs a server until it is told to stop, in one process or in several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from infrastructure.settings import Settings
from interfaces.bootstrap.checking import check
from interfaces.bootstrap.database import require_database
from interfaces.bootstrap.door import opened_door
from interfaces.bootstrap.invitation import Ready
from interfaces.bootstrap.role import Role


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
        # Either is imported when it is needed: the parent of several processes stays small.
        if door is not None and settings.processes > 1:
            from interfaces.bootstrap.processes import serve_in_processes

            await serve_in_processes(settings, roles, door, ready, stopping)
        else:
            from interfaces.bootstrap.alone import serve_alone

            await serve_alone(settings, roles, door, ready, stopping)
