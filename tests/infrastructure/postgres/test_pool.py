"""A pool of connections keeps every one of them, whenever its borrowers are cancelled."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random

from infrastructure.postgres.pool import Pool, make_pool
from tests.support import run

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
            every = [await pool.getconn(timeout=20) for _ in range(SIZE)]
            for connection in every:
                await pool.putconn(connection)

    run(story())
