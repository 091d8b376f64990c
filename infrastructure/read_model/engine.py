"""The SQLAlchemy engine that questions to the read model go through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

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
from infrastructure.tasks import delivered

# Taken before the snapshot of a transaction is: a rebuild that swaps the tables is then either
# before all of its statements or after them. Without this the snapshot could be older than the
# tables its statements find, and see nothing in them.
_HOLD = text(f"LOCK TABLE {batches}, {uploads}, {attempts} IN ACCESS SHARE MODE")


def make_engine(url: str, *, size: int = 4, overflow: int = 12) -> AsyncEngine:
    """An engine of at most `size + overflow` connections; `await engine.dispose()` closes it.

    A connection that a restart of the server has cut is replaced.
    """

    async def make(*_: Any, **__: Any) -> AsyncConnection:
        connection = await connect(
            url, name="queries", settings={"statement_timeout": STATEMENT_TIMEOUT}, patient=False
        )
        set_json_loads(msgspec.json.decode, connection)  # a page of uploads has hundreds of them
        await connection.set_autocommit(False)
        return connection

    return create_async_engine(
        "postgresql+psycopg://",
        async_creator=make,
        pool_size=size,
        max_overflow=overflow,
        pool_pre_ping=True,
        pool_timeout=POOL_TIMEOUT,
    )


@asynccontextmanager
async def read_connection(engine: AsyncEngine) -> AsyncIterator[Session]:
    """A connection for questions of one statement, which sees one moment by itself.

    Raises Unavailable.
    """
    async with _reached(engine.execution_options(isolation_level="AUTOCOMMIT")) as session:
        yield session


@asynccontextmanager
async def snapshot_connection(engine: AsyncEngine) -> AsyncIterator[Session]:
    """A connection on which every statement sees the same moment. Raises Unavailable."""
    snapshot = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    async with _reached(snapshot) as session:
        await session.execute(_HOLD)
        yield session


@asynccontextmanager
async def _reached(engine: AsyncEngine) -> AsyncIterator[Session]:
    """SQLAlchemy would lose a connection that it makes for somebody who is cancelled meanwhile."""
    connecting = asyncio.create_task(engine.connect().start())
    with transient_as_unavailable("the read model cannot be read"):
        session = await delivered(connecting, _let_go)
        try:
            yield session
        finally:
            await asyncio.shield(_let_go(session))


def _let_go(session: Session) -> asyncio.Task[None]:
    task = asyncio.create_task(session.close())
    _LEAVING.add(task)  # the loop itself would not hold on to it
    task.add_done_callback(_left)
    return task


def _left(task: asyncio.Task[None]) -> None:
    _LEAVING.discard(task)
    if not task.cancelled():
        task.exception()  # a connection that is lost need not be given back in good order


_LEAVING: set[asyncio.Task[None]] = set()
