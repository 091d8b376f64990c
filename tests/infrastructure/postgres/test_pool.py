"""A pool of connections keeps every one of them, whenever its borrowers are cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random

from infrastructure.postgres.pool import Pool, connect, make_pool
from tests.support import eventually, run

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


def test_borrowers_cancelled_at_any_moment_take_no_connection_with_them(
    database_url: str,
) -> None:
    async def story() -> None:
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

    run(story())


def test_a_connection_that_the_server_has_ended_is_not_handed_out(database_url: str) -> None:
    async def story() -> None:
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

    run(story())
