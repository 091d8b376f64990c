"""Number of PostgreSQL connections that a server needs, by role, checked at its start."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import structlog

from infrastructure.postgres.connection import connect
from infrastructure.postgres.connection_limits import (
    ConnectionLimit,
    is_pooled,
    open_at_once,
    tightest_limit,
)
from infrastructure.postgres.requirements import UnfitDatabase
from infrastructure.settings import Settings
from interfaces.bootstrap.role import Role

PATIENCE = 5.0  # seconds until sessions of a process that has just ended count no more
LOOK = 0.5  # seconds between two looks

# Connections that a process holds for itself, by role and for every process.
EVERY_PROCESS = 3  # listener, committer, keys of owners
ORCHESTRATOR = 6  # orchestrator, projector, sweeper, eraser, sealer, follower of webhooks
WORKER = 4  # the queue's
LEAST_READS, LEAST_QUERIES = 2, 1

_log = structlog.get_logger(__name__)


class PoolSizes(msgspec.Struct, frozen=True):
    """The most connections in the pools that grow with the load."""

    reads: int = 12
    queries: int = 16


class Needs(msgspec.Struct, frozen=True):
    """Numbers of connections: the minimum to work, and the maximum under load."""

    least: int
    most: int


class TooFewConnections(UnfitDatabase):
    """The database leaves fewer connections than this server needs to work."""


def needs_of(settings: Settings, roles: Sequence[Role]) -> Needs:
    """Return the connections that one process with these roles needs."""
    held = EVERY_PROCESS
    held += settings.max_owner_transfers > 0  # places of owners
    held += settings.blob_bucket is not None  # locks of blobs
    held += ORCHESTRATOR * (Role.ORCHESTRATOR in roles) + WORKER * (Role.WORKER in roles)
    queries = Role.API in roles or Role.ORCHESTRATOR in roles
    sizes = PoolSizes()
    return Needs(
        least=held + LEAST_READS + LEAST_QUERIES * queries,
        most=held + sizes.reads + sizes.queries * queries,
    )


def needs_of_server(settings: Settings, roles: Sequence[Role]) -> list[Needs]:
    """Return the connections that each process of a server needs."""
    if Role.API not in roles or settings.processes == 1:
        return [needs_of(settings, roles)]
    others = [role for role in roles if role is not Role.API]
    needs = [needs_of(settings, [Role.API])] * settings.processes
    return [*needs, needs_of(settings, others)] if others else needs


async def require_connections(settings: Settings, roles: Sequence[Role]) -> PoolSizes:
    """Return the pool sizes for every process of this server.

    An embedded database has enough. Raises TooFewConnections, psycopg.Error, BadDatabaseUrl.
    """
    if settings.database_url is None:
        return PoolSizes()
    each = needs_of_server(settings, roles)
    least, most = sum(need.least for need in each), sum(need.most for need in each)
    async with await connect(settings.database_url, name="check", patient=False) as connection:
        limit = await tightest_limit(connection)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while limit.free < least and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(LOOK)
            limit = await tightest_limit(connection)
        pooled = await is_pooled(connection)
    if limit.free < least:
        raise TooFewConnections(
            f"{limit.source}, of which {limit.free} are free; this server needs {least} connections"
            f" at least, and up to {most} under load",
            limit.remedy.format(limit.most - limit.free + most),
        )
    if pooled and (given := await open_at_once(settings.database_url, least)) < least:
        raise TooFewConnections(
            f"the pooler gives {given} connections at once; this server needs {least} at least, and"
            f" up to {most} under load",
            f"raise default_pool_size of pgbouncer to {most}",
        )
    if limit.free < most:
        available = f"{limit.source}, of which {limit.free} are free"
        _log.warning("few_connections", limit=available, needed=most, at_least=least)
    return _sizes(limit, least, most)


def _sizes(limit: ConnectionLimit, least: int, most: int) -> PoolSizes:
    """Divide the available connections among the pools if there are too few for full load."""
    sizes = PoolSizes()
    share = min(1.0, (limit.free - least) / max(1, most - least))
    return PoolSizes(
        reads=LEAST_READS + int(share * (sizes.reads - LEAST_READS)),
        queries=LEAST_QUERIES + int(share * (sizes.queries - LEAST_QUERIES)),
    )
