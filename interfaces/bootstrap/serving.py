"""Runs a server: the parts come up in order, run until told to stop, and go down in order."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import structlog

from infrastructure.settings import Settings
from interfaces.bootstrap.exit import leave_at_once
from interfaces.bootstrap.parts import open_parts
from interfaces.bootstrap.role import Role
from interfaces.bootstrap.roles import check, works_of
from interfaces.bootstrap.site import Site, open_site
from interfaces.bootstrap.supervision import cancel, supervise

SAME = 0.3  # seconds within which two signals are one
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
    PartFailed for a part that cannot be kept alive.
    """
    check(settings, roles)
    stopping = stop or asyncio.Event()
    with _signals(stopping):
        async with open_parts(settings) as parts:
            works = works_of(parts, roles)
            works["database"] = parts.database.keep_running
            async with open_site(parts, Role.API in roles) as site:
                works |= site.works
                tasks = [
                    asyncio.create_task(supervise(name, work), name=name)
                    for name, work in works.items()
                ]
                try:
                    ready(Ready(site.url, site.login, tuple(roles)))
                    await _first(stopping, tasks)
                finally:
                    await _go_down(site, tasks, settings.shutdown_grace)


async def _first(stopping: asyncio.Event, tasks: list[asyncio.Task[None]]) -> None:
    """Returns when told to stop; raises what a hopeless part raised."""
    waiting = asyncio.create_task(stopping.wait(), name="stop")
    try:
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiting}:
            task.result()
    finally:
        waiting.cancel()


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


@contextmanager
def _signals(stopping: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask to stop; the second one does not ask.

    What follows at once is the same signal again, sent to the process and to its group.
    """
    if threading.current_thread() is not threading.main_thread():  # signals go to the main one
        yield
        return
    loop = asyncio.get_running_loop()
    first = 0.0

    def asked() -> None:
        nonlocal first
        if not first:
            first = loop.time()
            stopping.set()
        elif loop.time() - first > SAME:
            leave_at_once()

    kinds = (signal.SIGTERM, signal.SIGINT)
    try:
        for kind in kinds:
            loop.add_signal_handler(kind, asked)
        yield
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)
