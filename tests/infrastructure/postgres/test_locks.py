from __future__ import annotations

import asyncio
from types import SimpleNamespace

import psycopg
import pytest

from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.locks import AdvisoryLock, blob_lock, first_permit_key, run_as_leader
from infrastructure.tasks import cancel_and_wait
from tests.support import eventually

LOCK = AdvisoryLock(0x75707472_00FF)


class Candidate:
    """A process that wants to lead, and its session while it does."""

    def __init__(self, url: str) -> None:
        self.session: Connection | None = None
        self.task = asyncio.create_task(
            run_as_leader(url, LOCK, self._lead, name="candidate", poll_interval=0.01)
        )

    @property
    def leads(self) -> bool:
        return self.session is not None

    async def _lead(self, connection: Connection) -> None:
        self.session = connection
        try:
            while True:
                await connection.execute("SELECT 1")
                await asyncio.sleep(0.01)
        finally:
            self.session = None


async def test_one_of_two_candidates_leads_until_it_ends(database_url: str) -> None:
    first, second = Candidate(database_url), Candidate(database_url)
    await eventually(lambda: first.leads or second.leads)
    leader, standby = (first, second) if first.leads else (second, first)
    await asyncio.sleep(0.1)
    assert not standby.leads

    await cancel_and_wait(leader.task)
    await eventually(lambda: standby.leads)
    await cancel_and_wait(standby.task)


async def test_a_leader_whose_session_is_ended_raises_and_another_one_leads(
    database_url: str,
) -> None:
    leader = Candidate(database_url)
    await eventually(lambda: leader.leads)
    assert leader.session is not None
    successor = Candidate(database_url)

    async with await connect(database_url, name="test") as other:
        await other.execute("SELECT pg_terminate_backend(%s)", (leader.session.info.backend_pid,))

    with pytest.raises(psycopg.OperationalError):
        await leader.task
    await eventually(lambda: successor.leads)
    await cancel_and_wait(successor.task)


async def test_an_error_of_the_leader_is_raised_and_frees_the_lock(database_url: str) -> None:
    async def lead(connection: Connection) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run_as_leader(database_url, LOCK, lead, name="candidate")

    async with await connect(database_url, name="test") as other:
        assert await LOCK.try_acquire(other)


async def test_the_session_of_a_leader_has_the_settings_and_the_name_it_was_given(
    database_url: str,
) -> None:
    seen = SimpleNamespace()

    async def lead(connection: Connection) -> None:
        query = "SELECT current_setting('lock_timeout'), current_setting('application_name')"
        seen.row = await (await connection.execute(query)).fetchone()

    await run_as_leader(database_url, LOCK, lead, name="candidate", settings={"lock_timeout": "7s"})

    assert seen.row == ("7s", "uptrail-candidate")


async def test_a_released_lock_can_be_acquired_by_another_session(database_url: str) -> None:
    async with (
        await connect(database_url, name="one") as one,
        await connect(database_url, name="two") as two,
    ):
        assert await LOCK.try_acquire(one)
        assert not await LOCK.try_acquire(two)

        await LOCK.release(one)

        assert await LOCK.try_acquire(two)


async def test_a_lock_of_a_transaction_ends_with_it(database_url: str) -> None:
    async with (
        await connect(database_url, name="one") as one,
        await connect(database_url, name="two") as two,
    ):
        async with one.transaction():
            await LOCK.acquire_in_transaction(one)
            assert not await LOCK.try_acquire(two)

        assert await LOCK.try_acquire(two)


def test_keys_of_blobs_and_owners_are_those_of_earlier_versions() -> None:
    assert blob_lock("uploads/a").key == 9200993544981577139
    assert first_permit_key("acme") == 3595320566644801536
