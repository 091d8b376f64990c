"""The list of workers: who lives, who is gone, and what each of them holds."""

from __future__ import annotations

from pathlib import Path

from infrastructure.jobs.status import PostgresWorkers
from tests.infrastructure.jobs.hands import Gate
from tests.infrastructure.jobs.plant import open_plant, pipeline

ONE_STEP = pipeline("step")


async def test_a_worker_is_listed_with_what_it_holds_of_the_owner_who_asks(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        gate = Gate()
        plant.orchestrate()
        plant.work({"step": gate})
        await plant.batch({"a.txt": b"x"}, owner="acme")
        await plant.batch({"b.txt": b"x"}, owner="globex")
        await plant.until(lambda: len(gate.inside) == 2)
        workers = PostgresWorkers(plant.pool, dead_after=30)

        async def held(owner: str | None) -> int:
            return sum(len(worker.attempts) for worker in await workers.workers(owner=owner))

        await plant.until(lambda: both(workers))
        (worker,) = await workers.workers(owner=None)

        assert worker.alive
        assert worker.jobs == 2
        assert (worker.name or "").endswith(f"-{worker.id}")
        assert {attempt.upload for attempt in worker.attempts} == set(gate.inside)
        assert {attempt.number for attempt in worker.attempts} == {1}
        assert (await held("acme"), await held("nobody")) == (1, 0)
        gate.open()


async def test_a_worker_that_was_silent_for_too_long_is_not_alive(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(
        database_url, tmp_path, pipelines=ONE_STEP, worker_heartbeat=60.0
    ) as plant:
        gate = Gate()
        leader = plant.orchestrate()
        plant.work({"step": gate})
        await plant.batch({"a.txt": b"x"})
        workers = PostgresWorkers(plant.pool, dead_after=30)
        await plant.until(lambda: some(workers))
        await plant.stop(leader)  # so that nobody takes the attempt away

        await plant.fetch_none("UPDATE procrastinate_workers SET last_heartbeat = 'epoch'")
        (silent,) = await PostgresWorkers(plant.pool, dead_after=0.001).workers(owner=None)
        await plant.fetch_none("DELETE FROM procrastinate_jobs")
        await plant.fetch_none("DELETE FROM procrastinate_workers")
        (gone,) = await workers.workers(owner=None)

        assert not silent.alive
        assert (gone.id, gone.alive, gone.last_heartbeat) == (None, False, None)
        assert gone.attempts == silent.attempts


async def test_a_worker_that_the_queue_has_forgotten_comes_back_under_a_new_name(
    database_url: str, tmp_path: Path
) -> None:
    async with open_plant(database_url, tmp_path, pipelines=ONE_STEP) as plant:
        workers = PostgresWorkers(plant.pool, dead_after=30)

        async def known() -> list[int | None]:
            return [worker.id for worker in await workers.workers(owner=None)]

        plant.work({"step": Gate()})
        before = await plant.until(known)
        await plant.fetch_none("DELETE FROM procrastinate_workers")
        after = await plant.until(known)

        assert after != before


async def some(workers: PostgresWorkers) -> bool:
    return any(worker.attempts for worker in await workers.workers(owner=None))


async def both(workers: PostgresWorkers) -> bool:
    return [len(worker.attempts) for worker in await workers.workers(owner=None)] == [2]
