"""The SQLAlchemy engine that questions to the read model go through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec
from psycopg import AsyncConnection
from psycopg.types.json import set_json_loads
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection as Session
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from infrastructure.database_errors import transient_as_unavailable
from infrastructure.postgres.connection import STATEMENT_TIMEOUT, connect
from infrastructure.postgres.pool import POOL_TIMEOUT
from infrastructure.read_model.tables import attempts, batches, uploads
from infrastructure.tasks import shield_result

T = TypeVar("T")

CLOSE_TIMEOUT = 5.0  # seconds that connections get to return before the engine is closed

# Taken before the snapshot of a transaction is: a rebuild that swaps the tables is then either
# before all of its statements or after them. Without this the snapshot could be older than the
# tables its statements find, and see nothing in them.
_HOLD = text(f"LOCK TABLE {batches}, {uploads}, {attempts} IN ACCESS SHARE MODE")


class ReadEngine(AsyncEngine):
    """Engine that also closes connections that are on their way back to it.

    `AsyncEngine.dispose` closes only those in the pool. A connection that a cancelled request is
    returning, or was waiting for, would go to a pool that is no longer used, and stay open.
    """

    async def dispose(self, close: bool = True) -> None:
        loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                while under_way := {task for task in _under_way if task.get_loop() is loop}:
                    await asyncio.wait(under_way)
        await super().dispose(close)


def make_engine(url: str, *, size: int = 4, overflow: int = 12) -> ReadEngine:
    """Return an engine of at most `size + overflow` connections; `engine.dispose()` closes it.

    A connection that a restart of the server has cut is replaced.
    """

    async def make(*_: Any, **__: Any) -> AsyncConnection:
        connection = await connect(
            url, name="queries", settings={"statement_timeout": STATEMENT_TIMEOUT}, patient=False
        )
        set_json_loads(msgspec.json.decode, connection)  # a page of uploads has hundreds of them
        await connection.set_autocommit(False)
        return connection

    engine = create_async_engine(
        "postgresql+psycopg://",
        async_creator=make,
        pool_size=size,
        max_overflow=overflow,
        pool_pre_ping=True,
        pool_timeout=POOL_TIMEOUT,
    )
    return ReadEngine(engine.sync_engine)


@asynccontextmanager
async def read_connection(engine: AsyncEngine) -> AsyncIterator[Session]:
    """Yield a connection for queries of one statement each. Raises Unavailable."""
    async with _reached(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        yield session


@asynccontextmanager
async def snapshot_connection(engine: AsyncEngine) -> AsyncIterator[Session]:
    """Yield a connection whose statements share one snapshot. Raises Unavailable."""
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    async with _reached(snapshot) as session:
        await session.execute(_HOLD)
        yield session


@asynccontextmanager
async def _reached(engine: AsyncEngine) -> AsyncIterator[Session]:
    """Yield a connection, returned also if the caller is cancelled while it is opened.

    SQLAlchemy would lose that one.
    """
    connecting = _start(engine.connect().start())
    with transient_as_unavailable("the read model cannot be read"):
        session = await shield_result(connecting, _let_go)
        try:
            yield session
        finally:
            await asyncio.shield(_let_go(session))


def _let_go(session: Session) -> asyncio.Task[None]:
    return _start(session.close())


def _start(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    task = asyncio.create_task(work)
    _under_way.add(task)  # the loop itself would not hold on to it
    task.add_done_callback(_ended)
    return task


def _ended(task: asyncio.Task[Any]) -> None:
    _under_way.discard(task)
    if not task.cancelled():
        task.exception()  # a connection that is lost need not be given back in good order


_under_way: set[asyncio.Task[Any]] = set()
