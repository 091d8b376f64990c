"""The pool keeps every connection, whenever its borrowers are cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.errors import ConnectionTimeout, ReadOnlySqlTransaction
from psycopg_pool import PoolTimeout

from application.errors import Unavailable
from infrastructure.postgres.connection import PatientConnection, TimedConnection, connect
from infrastructure.postgres.pool import Pool, make_pool
from tests.support import eventually

SIZE = 2
ROUNDS = 300
LONGEST = 0.006  # seconds after which a borrower is cancelled: it waits, holds one, or gives back


async def borrow(pool: Pool) -> None:
    async with pool.connection() as connection:
        await connection.execute("SELECT 1")


async def borrow_and_be_cancelled(pool: Pool, patience: float) -> None:
    borrower = asyncio.create_task(borrow(pool))
    asyncio.get_running_loop().call_later(patience, borrower.cancel)
    with suppress(asyncio.CancelledError):
        await borrower


async def test_borrowers_cancelled_at_any_moment_take_no_connection_with_them(
    database_url: str,
) -> None:
    moments = Random(1)
    async with make_pool(database_url, name="test", min_size=SIZE, max_size=SIZE) as pool:
        for _ in range(ROUNDS):
            async with asyncio.TaskGroup() as borrowers:
                for _ in range(2 * SIZE):
                    patience = moments.random() * LONGEST
                    borrowers.create_task(borrow_and_be_cancelled(pool, patience))
        every = [await pool.getconn(timeout=60) for _ in range(SIZE)]
        for connection in every:
            await pool.putconn(connection)


async def test_a_connection_that_the_server_has_ended_is_not_handed_out(database_url: str) -> None:
    async with (
        make_pool(database_url, name="test", min_size=SIZE, max_size=SIZE) as pool,
        await connect(database_url, name="outside") as outside,
    ):
        await pool.wait()
        ours = "FROM pg_stat_activity WHERE application_name = 'uptrail-test'"
        await outside.execute(f"SELECT pg_terminate_backend(pid) {ours}".encode())

        async def are_gone() -> bool:
            cursor = await outside.execute(f"SELECT count(*) {ours}".encode())
            return await cursor.fetchone() == (0,)

        await eventually(are_gone)
        every = [await pool.getconn(timeout=60) for _ in range(SIZE)]
        for connection in every:
            cursor = await connection.execute("SELECT 1")
            assert await cursor.fetchone() == (1,)
            await pool.putconn(connection)


async def test_results_that_a_cancelled_borrower_left_are_read_by_nobody(
    database_url: str,
) -> None:
    async with make_pool(database_url, name="test", min_size=1, max_size=1) as pool:
        asked = asyncio.Event()

        async def ask_and_be_cancelled() -> None:
            connection = await pool.getconn()
            try:
                connection.pgconn.enter_pipeline_mode()
                connection.pgconn.send_query_params(b"SELECT 'of another'", None)
                connection.pgconn.pipeline_sync()
                asked.set()
                await asyncio.Event().wait()
            finally:
                await pool.putconn(connection)

        borrower = asyncio.create_task(ask_and_be_cancelled())
        await asked.wait()
        borrower.cancel()
        with suppress(asyncio.CancelledError):
            await borrower

        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT 'mine'")
            assert await cursor.fetchone() == ("mine",)


async def test_a_pool_is_back_soon_after_a_long_outage(database_url: str, tmp_path: Path) -> None:
    """psycopg_pool would wait 1, 2, 4, 8 ... seconds between its attempts."""
    server = str(conninfo_to_dict(database_url)["host"])
    if not server.startswith("/"):
        pytest.skip("needs a server on a Unix socket, whose folder can be hidden")
    away = tmp_path / "s"
    url = make_conninfo(database_url, host=str(away))

    loop = asyncio.get_running_loop()
    async with make_pool(url, name="test", min_size=SIZE, max_size=SIZE) as pool:
        with pytest.raises(PoolTimeout):
            await pool.getconn(timeout=5)
        waiting = asyncio.create_task(pool.getconn(timeout=60))
        await eventually(lambda: pool.get_stats()["connections_errors"] >= 8)
        away.symlink_to(server)
        back = loop.time()
        await pool.putconn(await waiting)
        assert loop.time() - back < 5
        await eventually(lambda: pool.get_stats()["pool_size"] == SIZE)


async def test_a_pool_does_not_keep_a_session_that_is_read_only(database_url: str) -> None:
    async with make_pool(database_url, name="test", min_size=SIZE, max_size=SIZE) as pool:
        await pool.wait()  # else the first connection may be lent twice, and another stays writable
        for _ in range(SIZE):
            async with pool.connection() as connection:
                await connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(Unavailable) as refused:
            async with pool.connection() as connection:
                await connection.execute("CREATE TABLE t ()")
        assert isinstance(refused.value.__cause__, ReadOnlySqlTransaction)
        async with pool.connection() as connection:
            await connection.execute("CREATE TABLE t ()")


async def test_a_silent_server_is_given_up_and_its_other_connections_are_replaced(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TimedConnection, "answer_timeout", 0.3)

    async with make_pool(database_url, name="test", min_size=SIZE, max_size=SIZE) as pool:
        await pool.wait()
        with pytest.raises(Unavailable) as refused:
            async with pool.connection() as connection:
                await connection.execute("SELECT pg_sleep(10)")
        assert isinstance(refused.value.__cause__, ConnectionTimeout)
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
        await eventually(lambda: pool.get_stats()["connections_num"] == 2 * SIZE)


async def test_a_long_statement_is_waited_for_while_its_server_lives(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PatientConnection, "answer_timeout", 0.1)

    async with await connect(database_url, name="test") as connection:
        cursor = await connection.execute("SELECT 1 FROM pg_sleep(0.5)")
        assert await cursor.fetchone() == (1,)
