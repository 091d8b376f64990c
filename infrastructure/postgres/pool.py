"""Connections to PostgreSQL: one of one's own, or one out of a pool."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Coroutine
from typing import Any, TypeAlias, TypeVar

from psycopg import AsyncConnection, AsyncCursor
from psycopg.pq import PipelineStatus
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from infrastructure.tasks import delivered

Connection: TypeAlias = AsyncConnection[TupleRow]
Cursor: TypeAlias = AsyncCursor[TupleRow]
T = TypeVar("T")

CONNECT_TIMEOUT = 10  # seconds

# A machine that vanished without a word holds its locks until the server asks after it, which by
# default takes two hours. See PostgreSQL's `tcp_keepalives_idle`.
ASK_AFTER_US = """
SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3"""


class Pool(AsyncConnectionPool[Connection]):
    """A pool that keeps its connections, whenever those who borrow them are cancelled.

    In psycopg_pool a cancellation that arrives while a connection is being handed out or taken
    back loses that connection for good, and after as many of those nobody gets one any more. So
    both happen in tasks of their own here, which a cancelled borrower leaves behind.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._under_way: set[asyncio.Task[Any]] = set()
        super().__init__(url, **options)

    async def getconn(self, timeout: float | None = None) -> Connection:
        return await delivered(self._start(super().getconn(timeout)), self._take_back)

    async def putconn(self, conn: Connection) -> None:
        """A connection whose borrower was cancelled in the middle of a pipeline is let go."""
        if conn.pgconn.pipeline_status != PipelineStatus.OFF:
            await conn.close()  # what was asked and not yet read would mix with the next questions
        await asyncio.shield(self._start(super().putconn(conn)))

    async def close(self, timeout: float = 5.0) -> None:
        await super().close(timeout)
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=timeout)

    def _take_back(self, connection: Connection) -> None:
        """Nobody waits for this connection any more."""
        self._start(super().putconn(connection))

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)  # the loop itself would not hold on to it
        task.add_done_callback(self._under_way.discard)
        return task


async def connect(url: str, *, name: str) -> Connection:
    """A connection of one's own, in autocommit mode; `name` tells it apart in pg_stat_activity.

    Raises psycopg.OperationalError when the server cannot be reached.
    """
    connection = await AsyncConnection.connect(url, **_options(name))
    try:
        await _introduce(connection)
    except BaseException:
        await connection.close()
        raise
    return connection


def make_pool(url: str, *, name: str, min_size: int = 1, max_size: int = 8) -> Pool:
    """A pool of autocommit connections, to be opened with `async with`.

    A connection is tried before it is handed out, so that a restart of the server costs a
    caller nothing but time; nobody waits longer than 30 seconds (psycopg_pool.PoolTimeout).
    """
    return Pool(
        url,
        kwargs=_options(name),
        min_size=min_size,
        max_size=max_size,
        open=False,
        check=still_there,
        configure=_introduce,
        name=f"uptrail-{name}",
        timeout=30.0,
    )


async def _introduce(connection: Connection) -> None:
    await connection.execute(ASK_AFTER_US)


async def still_there(connection: Connection) -> None:
    """Raises psycopg.OperationalError where the server has let go of an idle connection.

    A server that ends a connection says so, and then there is something to read. Asking every
    time would be as dear as most of what is asked next, and finds no more: to a server that
    vanished without a word neither question gets an answer.
    """
    if has_news(connection.fileno()):
        await Pool.check_connection(connection)


def has_news(descriptor: int) -> bool:
    """Whether an idle connection's server has said something; where that is unknown, it has."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLERR | select.POLLHUP)
    return bool(poll.poll(0))


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
