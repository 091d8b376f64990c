"""Pools of connections to PostgreSQL, whose transient errors are raised as Unavailable."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from psycopg.errors import ReadOnlySqlTransaction
from psycopg.pq import PipelineStatus
from psycopg_pool import AsyncConnectionPool

from infrastructure.database_errors import DATABASE_UNAVAILABLE, transient_as_unavailable
from infrastructure.postgres.connection import (
    STATEMENT_TIMEOUT,
    Connection,
    TimedConnection,
    conninfo,
    set_up,
)
from infrastructure.tasks import shield_result

T = TypeVar("T")
P = TypeVar("P", bound="RawPool")

POOL_TIMEOUT = 20.0  # seconds that a borrower waits for a connection
RECONNECT_PAUSE = 1.0  # seconds between two attempts to connect, however long an outage lasts


class RawPool(AsyncConnectionPool[Connection]):
    """A pool that loses no connection when a borrower is cancelled; for libraries that translate
    the errors of psycopg themselves.

    In psycopg_pool a cancellation that arrives while a connection is being lent or returned loses
    that connection for good, and in the end the pool is empty. So both happen in tasks of their own
    here, which a cancelled borrower leaves behind.

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
        """Borrow a connection. One whose session is read-only is not used again: it stays read-only
        when the database accepts writes again."""
        async with super().connection(timeout) as connection:
            try:
                yield connection
            except ReadOnlySqlTransaction:
                if isinstance(connection, TimedConnection):
                    connection.is_outdated = True
                await connection.close()
                raise

    async def getconn(self, timeout: float | None = None) -> Connection:
        return await shield_result(self._start(super().getconn(timeout)), self._take_back)

    async def putconn(self, conn: Connection) -> None:
        """Return a connection; close one whose borrower was cancelled within a pipeline."""
        if conn.pgconn.pipeline_status != PipelineStatus.OFF:
            await conn.close()  # results that were not read would mix with those of the next query
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
        """Return a connection whose borrower was cancelled before it was lent."""
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


class Pool(RawPool):
    """A pool whose borrowers get Unavailable for every transient error of the database."""

    @asynccontextmanager
    async def connection(
        self, timeout: float | None = None, *, message: str = DATABASE_UNAVAILABLE
    ) -> AsyncIterator[Connection]:
        """Borrow a connection. Raises Unavailable, whose text begins with `message`."""
        with transient_as_unavailable(message):
            async with super().connection(timeout) as connection:
                yield connection


def make_pool(
    url: str,
    *,
    name: str,
    min_size: int = 1,
    max_size: int = 8,
    settings: Mapping[str, str] | None = None,
) -> Pool:
    """Return a pool of autocommit connections, to be opened with `async with`.

    A connection is checked before it is lent, so that a restart of the server costs a borrower
    nothing but time; none waits longer than POOL_TIMEOUT. `settings` are of each session, besides
    those that every session states.
    """
    return _make(Pool, url, name, min_size, max_size, settings)


def make_raw_pool(
    url: str, *, name: str, max_size: int, settings: Mapping[str, str] | None = None
) -> RawPool:
    """Like `make_pool`, but borrowers get the errors of psycopg."""
    return _make(RawPool, url, name, 1, max_size, settings)


def _make(
    kind: type[P],
    url: str,
    name: str,
    min_size: int,
    max_size: int,
    settings: Mapping[str, str] | None,
) -> P:
    stated = {"statement_timeout": STATEMENT_TIMEOUT, **(settings or {})}

    async def configure(connection: Connection) -> None:
        await set_up(connection, url, stated)

    return kind(
        lambda: conninfo(url, name),
        connection_class=TimedConnection,
        kwargs={"autocommit": True},
        min_size=min_size,
        max_size=max_size,
        open=False,
        check=check_alive,
        configure=configure,
        name=f"uptrail-{name}",
        timeout=POOL_TIMEOUT,
    )


async def check_alive(connection: Connection) -> None:
    """Raise psycopg.OperationalError if the server has ended an idle connection.

    A server that ends a connection sends a message, so that there is input. A query each time would
    cost as much as most of the queries that follow, and finds no more: a server that vanished
    answers neither.
    """
    if has_pending_input(connection.fileno()):
        await RawPool.check_connection(connection)


def has_pending_input(descriptor: int) -> bool:
    """Return whether the server of an idle connection has sent something, True where unknown."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    poll.register(descriptor, select.POLLIN | select.POLLERR | select.POLLHUP)
    return bool(poll.poll(0))
