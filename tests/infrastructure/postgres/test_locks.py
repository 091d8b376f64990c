from __future__ import annotations

import asyncio
from types import SimpleNamespace

import psycopg
import pytest

from infrastructure.postgres.connection import Connection, connect
from infrastructure.postgres.locks import (
    COMMITTER_SESSIONS,
    ERASER_LOCK,
    LOG_LOCK,
    MAINTENANCE_LOCK,
    MIGRATION_LOCK,
    ORCHESTRATOR_LOCK,
    PROJECTOR_LOCK,
    SEAL_LOCK,
    SEALER_LOCK,
    SWEEPER_LOCK,
    WEBHOOKS_LOCK,
    AdvisoryLock,
    SessionLocks,
    blob_lock,
    first_permit_key,
    run_as_leader,
)
from infrastructure.postgres.tracked_positions import READ_MODEL_POSITION
from infrastructure.tasks import cancel_and_wait
from tests.support import eventually

LOCK = AdvisoryLock(0x75707472_00FF)
LOCKS = (
    *(MIGRATION_LOCK, LOG_LOCK, ORCHESTRATOR_LOCK, MAINTENANCE_LOCK, PROJECTOR_LOCK),
    *(SWEEPER_LOCK, WEBHOOKS_LOCK, SEALER_LOCK, SEAL_LOCK, ERASER_LOCK),
)


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


async def test_a_position_that_is_locked_stays_until_the_transaction_ends(
    database_url: str,
) -> None:
    async with (
        await connect(database_url, name="one") as one,
        await connect(database_url, name="two") as two,
        await connect(database_url, name="observer") as observer,
    ):

        async def locked_by_another() -> int:
            async with two.transaction():
                return await READ_MODEL_POSITION.lock(two)

        async with one.transaction():
            assert await READ_MODEL_POSITION.lock(one) == 0
            locking = asyncio.create_task(locked_by_another())

            async def is_over_or_waits() -> bool:
                cursor = await observer.execute(
                    "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'",
                    (two.info.backend_pid,),
                )
                return locking.done() or await cursor.fetchone() is not None

            await eventually(is_over_or_waits)
            await READ_MODEL_POSITION.save(one, 7)

        assert await locking == 7


async def test_locks_of_a_lost_session_are_not_held_any_more(database_url: str) -> None:
    """Another process may have held and released them since."""
    async with SessionLocks(database_url, name="locks", reacquire=False) as locks:
        lost, other = await locks.try_acquire(1), await locks.try_acquire(2)
        assert lost is not None
        assert other is not None
        await _end_session(database_url, "uptrail-locks")

        again = await locks.try_acquire(3)  # finds out, and connects again

        assert again is not None
        assert (lost.is_held, other.is_held, again.is_held) == (False, False, True)


async def test_a_lock_that_is_released_twice_stays_with_its_next_holder(database_url: str) -> None:
    async with SessionLocks(database_url, name="locks", reacquire=False) as locks:
        first = await locks.try_acquire(1)
        assert first is not None
        await first.release()
        second = await locks.try_acquire(1)
        assert second is not None

        await first.release()

        assert second.is_held
        async with await connect(database_url, name="other") as other:
            assert not await AdvisoryLock(1).try_acquire(other)


async def test_a_lock_that_is_acquired_for_a_cancelled_caller_is_released(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with SessionLocks(database_url, name="locks", reacquire=False) as locks:
        acquired, answered = asyncio.Event(), asyncio.Event()
        acquire_key = locks._acquire_key

        async def acquire_and_wait(first: int, count: int) -> int | None:
            key = await acquire_key(first, count)
            acquired.set()
            await answered.wait()
            return key

        monkeypatch.setattr(locks, "_acquire_key", acquire_and_wait)
        acquiring = asyncio.create_task(locks.try_acquire(1))
        await acquired.wait()
        acquiring.cancel()
        await asyncio.sleep(0)
        answered.set()
        with pytest.raises(asyncio.CancelledError):
            await acquiring

        async with await connect(database_url, name="other") as other:
            assert await AdvisoryLock(1).try_acquire(other)


async def test_a_session_holds_no_more_locks_than_it_may(database_url: str) -> None:
    async with SessionLocks(database_url, name="locks", reacquire=True, max_locks=2) as locks:
        first = await locks.try_acquire(1)
        assert first is not None
        assert await locks.try_acquire(2) is not None
        assert await locks.try_acquire(3) is None

        await first.release()

        assert await locks.try_acquire(3) is not None


async def _end_session(url: str, name: str) -> None:
    async with await connect(url, name="test") as other:
        await other.execute(
            "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"
            " WHERE application_name = %s AND datname = current_database()",
            (name,),
        )


def test_keys_are_those_of_earlier_versions() -> None:
    """Processes of two versions that share a database exclude each other by these."""
    keys = [lock.key - (0x75707472 << 16) for lock in LOCKS]
    assert keys == [0x1, 0x2, 0x3, 0x4, 0x5, 0x6, 0x7, 0x8, 0x9, 0x10]
    assert COMMITTER_SESSIONS == 0x75707472


def test_keys_of_blobs_and_owners_are_those_of_earlier_versions() -> None:
    assert blob_lock("uploads/a").key == 9200993544981577139
    assert first_permit_key("acme") == 3595320566644801536
