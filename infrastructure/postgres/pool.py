"""Pools of connections to PostgreSQL."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias, TypeVar

from psycopg import AsyncCursor
from psycopg.errors import ReadOnlySqlTransaction
from psycopg.pq import PipelineStatus
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from infrastructure.database_errors import transient_as_unavailable
from infrastructure.postgres.connection import (
    STATEMENT_TIMEOUT,
    Connection,
    TimedConnection,
    connect,
    conninfo,
    set_up,
)
from infrastructure.tasks import delivered

__all__ = ["Connection", "Cursor", "Pool", "borrowed", "connect", "has_news", "make_pool"]

Cursor: TypeAlias = AsyncCursor[TupleRow]
T = TypeVar("T")

POOL_TIMEOUT = 20.0  # seconds that a borrower waits for a connection
RECONNECT_PAUSE = 1.0  # seconds between two attempts to connect, however long an outage lasts


class Pool(AsyncConnectionPool[Connection]):
    """A pool that keeps its connections, whenever those who borrow them are cancelled.

    In psycopg_pool a cancellation that arrives while a connection is being handed out or taken
    back loses that connection for good, and after as many of those nobody gets one any more. So
    both happen in tasks of their own here, which a cancelled borrower leaves behind.

    It also connects again at a steady pace after an outage, where psycopg_pool waits twice as
    long after each failure and gives up after a while; and when one connection was given up
    because its server was silent or read-only, the others of that time are replaced, too.
    """

    def __init__(self, conninfo: str | Callable[[], str], **options: Any) -> None:
        self._under_way: set[asyncio.Task[Any]] = set()
        self._waits: set[asyncio.Task[None]] = set()  # of those, what close() need not wait for
        self._replaced_at = 0.0
        super().__init__(
            conninfo,
            reconnect_timeout=RECONNECT_PAUSE,
            reconnect_failed=lambda _: self._connect_later(),
            **options,
        )

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Connection]:
        """A connection of the pool. One whose session is read-only is not used again: it stays so
        when the database takes writes again."""
        async with super().connection(timeout) as connection:
            try:
                yield connection
            except ReadOnlySqlTransaction:
                if isinstance(connection, TimedConnection):
                    connection.is_outdated = True
                await connection.close()
                raise

    async def getconn(self, timeout: float | None = None) -> Connection:
        return await delivered(self._start(super().getconn(timeout)), self._take_back)

    async def putconn(self, conn: Connection) -> None:
        """A connection whose borrower was cancelled in the middle of a pipeline is let go."""
        if conn.pgconn.pipeline_status != PipelineStatus.OFF:
            await conn.close()  # what was asked and not yet read would mix with the next questions
        if isinstance(conn, TimedConnection) and conn.is_outdated:
            self._replace_older_than(conn)
        await asyncio.shield(self._start(super().putconn(conn)))

    async def close(self, timeout: float = 5.0) -> None:
        await super().close(timeout)
        for task in self._waits:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=timeout)

    def _take_back(self, connection: Connection) -> None:
        """Nobody waits for this connection any more."""
        self._start(super().putconn(connection))

    def _replace_older_than(self, outdated: TimedConnection) -> None:
        """Replace all connections, unless that was done since this one was made."""
        if outdated.made_at > self._replaced_at:
            self._replaced_at = asyncio.get_running_loop().time()
            self._start(self.drain())

    def _connect_later(self) -> None:
        task = self._start(self._connect_again())
        self._waits.add(task)
        task.add_done_callback(self._waits.discard)

    async def _connect_again(self) -> None:
        """Ask for a connection once more if the pool lacks one, or a borrower waits.

        psycopg_pool itself does so only when the next borrower comes.
        """
        await asyncio.sleep(RECONNECT_PAUSE)
        if self.closed:
            return
        async with self._lock:
            if self._nconns < self.min_size or self._waiting:
                self._maybe_grow_pool()

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._under_way.add(task)  # the loop itself would not hold on to it
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # marked as retrieved; a waiting caller, if any, gets it


def make_pool(
    url: str,
    *,
    name: str,
    min_size: int = 1,
    max_size: int = 8,
    settings: Mapping[str, str] | None = None,
) -> Pool:
    """A pool of autocommit connections, to be opened with `async with`.

    A connection is tried before it is handed out, so that a restart of the server costs a
    caller nothing but time; no caller waits longer than POOL_TIMEOUT (psycopg_pool.PoolTimeout).
    `settings` are of each session, besides those that every session states.
    """
    stated = {"statement_timeout": STATEMENT_TIMEOUT, **(settings or {})}

    async def configure(connection: Connection) -> None:
        await set_up(connection, url, stated)

    return Pool(
        lambda: conninfo(url, name),
        connection_class=TimedConnection,
        kwargs={"autocommit": True},
        min_size=min_size,
        max_size=max_size,
        open=False,
        check=still_there,
        configure=configure,
        name=f"uptrail-{name}",
        timeout=POOL_TIMEOUT,
    )


@asynccontextmanager
async def borrowed(
    pool: Pool, what: str = "the database cannot be used"
) -> AsyncIterator[Connection]:
    """A connection of the pool. Raises Unavailable."""
    with transient_as_unavailable(what):
        async with pool.connection() as connection:
            yield connection


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
