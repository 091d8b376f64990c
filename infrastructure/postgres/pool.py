"""Connections to PostgreSQL: one of one's own, or one out of a pool."""

from __future__ import annotations

from typing import Any, TypeAlias

from psycopg import AsyncConnection
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

Connection: TypeAlias = AsyncConnection[TupleRow]
Pool: TypeAlias = AsyncConnectionPool[Connection]

CONNECT_TIMEOUT = 10  # seconds


async def connect(url: str, *, name: str) -> Connection:
    """A connection of one's own, in autocommit mode; `name` tells it apart in pg_stat_activity.

    Raises psycopg.OperationalError when the server cannot be reached.
    """
    return await AsyncConnection.connect(url, **_options(name))


def make_pool(url: str, *, name: str, min_size: int = 1, max_size: int = 8) -> Pool:
    """A pool of autocommit connections, to be opened with `async with`.

    A connection is tried before it is handed out, so that a restart of the server costs a
    caller nothing but time; nobody waits longer than 30 seconds (psycopg_pool.PoolTimeout).
    """
    return AsyncConnectionPool(
        url,
        kwargs=_options(name),
        min_size=min_size,
        max_size=max_size,
        open=False,
        check=AsyncConnectionPool.check_connection,
        name=f"uptrail-{name}",
        timeout=30.0,
    )


def _options(name: str) -> dict[str, Any]:
    return {
        "autocommit": True,
        "application_name": f"uptrail-{name}",
        "connect_timeout": CONNECT_TIMEOUT,
        # A server that vanished without a word is noticed after a minute, not after two hours.
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
    }
