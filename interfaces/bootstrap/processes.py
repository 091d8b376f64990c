"""Several processes that answer on one port, and one for the other roles, kept alive by a parent.

The parent reserves the port, keeps the database running and tells where the server is; it answers
nothing itself. Each member is a process of its own that accepts from sockets it inherits.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import structlog

from infrastructure.auth.keys import PostgresKeys
from infrastructure.postgres.pool import make_pool
from infrastructure.settings import Settings
from interfaces.bootstrap.checking import reach_us
from interfaces.bootstrap.connections import PoolSizes, require_connections
from interfaces.bootstrap.database import Database, open_database
from interfaces.bootstrap.door import Door, announced
from interfaces.bootstrap.exit import leave_at_once
from interfaces.bootstrap.invitation import Ready, invite
from interfaces.bootstrap.manager import tell_manager
from interfaces.bootstrap.member import Member, Order
from interfaces.bootstrap.role import Role
from interfaces.bootstrap.stopping import signals
from interfaces.bootstrap.supervision import Work, cancel, first_end, supervise

LATE = 10.0  # seconds beyond the grace for a member to end before it is killed

_log = structlog.get_logger(__name__)


async def serve_in_processes(
    settings: Settings,
    roles: Sequence[Role],
    door: Door,
    ready: Callable[[Ready], None],
    stopping: asyncio.Event,
) -> None:
    """Serves until told to stop; `ready` is called once every member is up.

    Raises what `require_connections` and `open_database` raise, NeverUp for a member that cannot
    begin, PartFailed for one that cannot be kept alive.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        pools = await require_connections(settings, roles)
        database = await stack.enter_async_context(open_database(settings))
        async with make_pool(database.url, name="parent", max_size=1) as pool:
            login = await invite(PostgresKeys(pool), settings, door)
        metrics = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uptrail-metrics-")))
        given = msgspec.structs.replace(settings, database_url=database.url)
        members = _members(given, roles, pools, door, metrics)

        def at_once() -> None:
            for member in members:
                member.kill()
            leave_at_once()

        stack.enter_context(signals(stopping, at_once))
        async with _supervised(members, database, door, settings.shutdown_grace) as tasks:
            if not await _all_up(members, stopping, tasks):
                return
            with announced(settings.data_dir, door.url):
                tell_manager("READY=1")
                ready(Ready(door.url, login, tuple(roles)))
                await first_end(stopping, tasks)


def _members(
    settings: Settings, roles: Sequence[Role], pools: PoolSizes, door: Door, metrics: Path
) -> list[Member]:
    """Those that answer, and one for whatever else there is to do."""
    others = tuple(role for role in roles if role is not Role.API)
    members = [
        Member(Order(f"api-{number}", settings, (Role.API,), pools=pools), metrics, door)
        for number in range(1, settings.processes + 1)
    ]
    if others:
        # This process passes services and webhook receivers a URL that another process serves.
        base_url = reach_us(settings, roles) or None
        changed = msgspec.structs.replace(settings, public_url=base_url)
        members.append(Member(Order("+".join(others), changed, others, pools=pools), metrics, None))
    return members


async def _all_up(
    members: Sequence[Member], stopping: asyncio.Event, tasks: Sequence[asyncio.Task[None]]
) -> bool:
    """Whether all came up before somebody wanted to stop. Raises NeverUp, PartFailed."""
    up = asyncio.create_task(_up(members), name="up")
    try:
        await first_end(stopping, [up, *tasks])
        return up.done() and not stopping.is_set()
    finally:
        up.cancel()


async def _up(members: Sequence[Member]) -> None:
    for member in members:
        await member.up.wait()


@asynccontextmanager
async def _supervised(
    members: Sequence[Member], database: Database, door: Door, grace: float
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Everything kept alive inside; at the end first the door, then the members, the database."""
    following = _task("database", database.keep_running)
    # Those that answer go on without the one that works, however often it dies.
    tasks = [_task(member.name, member.live, essential=member.answers) for member in members]
    try:
        yield [following, *tasks]
    finally:
        _log.info("stopping")
        tell_manager("STOPPING=1")
        for opened in door.sockets:
            opened.close()
        await cancel(*tasks, within=grace + LATE)
        for member in members:
            member.kill()
        await cancel(following, within=LATE, insist=True)
        _log.info("stopped")


def _task(name: str, work: Work, *, essential: bool = True) -> asyncio.Task[None]:
    return asyncio.create_task(supervise(name, work, essential=essential), name=name)
