from __future__ import annotations

import asyncio

import psycopg

from application.ports.limits import TransferPermit
from infrastructure.postgres.locks import PostgresTransferLimiter
from tests.support import eventually

MOST = 2


async def _taken(
    slots: PostgresTransferLimiter, owner: str = "acme", most: int = MOST
) -> TransferPermit:
    slot = await slots.acquire(owner, most)
    assert slot is not None
    return slot


async def test_all_processes_together_have_so_many_places_for_an_owner(database_url: str) -> None:
    async with (
        PostgresTransferLimiter(database_url) as here,
        PostgresTransferLimiter(database_url) as there,
    ):
        first, second = await _taken(here), await _taken(there)
        assert await here.acquire("acme", MOST) is None
        assert await there.acquire("acme", MOST) is None
        await _taken(there, "rival")

        await first.release()
        third = await _taken(there)
        assert await here.acquire("acme", MOST) is None
        await second.release()
        await third.release()
        await _taken(here)
        await _taken(here)
        assert await there.acquire("acme", MOST) is None


async def test_many_at_once_get_as_many_places_as_there_are(database_url: str) -> None:
    async with (
        PostgresTransferLimiter(database_url) as here,
        PostgresTransferLimiter(database_url) as there,
    ):
        asked = [slots.acquire("acme", 7) for slots in (here, there) for _ in range(20)]
        found = await asyncio.gather(*asked)
        assert len([slot for slot in found if slot is not None]) == 7


async def test_the_places_of_a_process_that_is_gone_are_free(database_url: str) -> None:
    async with PostgresTransferLimiter(database_url) as here:
        async with PostgresTransferLimiter(database_url) as gone:
            await _taken(gone)
            await _taken(gone)
            assert await here.acquire("acme", MOST) is None
        for _ in range(MOST):
            await eventually(lambda: here.acquire("acme", MOST))
        assert await here.acquire("acme", MOST) is None


async def test_permits_are_acquired_again_after_a_lost_connection(database_url: str) -> None:
    async with (
        PostgresTransferLimiter(database_url) as here,
        PostgresTransferLimiter(database_url) as there,
    ):
        await _taken(here)
        await asyncio.to_thread(_cut, database_url)
        await (await _taken(here, "rival")).release()  # finds out, and connects again
        await _taken(there)
        assert await there.acquire("acme", MOST) is None


def _cut(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"
            " WHERE application_name = 'uptrail-transfer-slots' AND datname = current_database()"
        )
