"""A disposed engine leaves no connection behind."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from infrastructure.postgres.connection import Connection, connect
from infrastructure.read_model.engine import make_engine, read_connection
from tests.support import eventually


async def test_a_disposed_engine_closes_the_connection_of_a_cancelled_request(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting, may_connect, connected = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def connect_slowly(*args: Any, **options: Any) -> Connection:
        connecting.set()
        await may_connect.wait()
        connection = await connect(*args, **options)
        connected.set()
        return connection

    async def query() -> None:
        async with read_connection(engine):
            pass

    monkeypatch.setattr("infrastructure.read_model.engine.connect", connect_slowly)
    engine = make_engine(database_url)
    pool = engine.pool  # what returns to it is not collected as long as this refers to it
    request = asyncio.create_task(query())
    await connecting.wait()
    request.cancel()
    with suppress(asyncio.CancelledError):
        await request
    asyncio.get_running_loop().call_later(0.1, may_connect.set)

    await engine.dispose()

    await eventually(connected.is_set)
    with psycopg.connect(database_url, autocommit=True) as connection:
        await eventually(lambda: other_sessions(connection) == 0, deadline=10)
    del pool


def other_sessions(connection: psycopg.Connection) -> int:
    row = connection.execute("""
        SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND backend_type = 'client backend'""").fetchone()
    assert row is not None
    return int(row[0])
