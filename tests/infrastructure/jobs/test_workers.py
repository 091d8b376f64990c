"""Status of workers: registration, heartbeat and the attempts that they hold."""

from __future__ import annotations

import pytest

from infrastructure.jobs.heartbeat import PostgresWorkers
from tests.infrastructure.jobs.fake_processors import Gate
from tests.infrastructure.jobs.harness import PipelineHarness, pipeline

ONE_STEP = pipeline("step")


async def test_a_worker_is_listed_with_the_attempts_of_the_asking_owner(
    harness: PipelineHarness,
) -> None:
    gate = Gate()
    harness.run({"step": gate})
    await harness.batch({"a.txt": b"x"}, owner="acme")
    await harness.batch({"b.txt": b"x"}, owner="globex")
    await harness.until(lambda: len(gate.inside) == 2)
    workers = PostgresWorkers(harness.pool, dead_after=30)

    async def held(owner: str | None) -> int:
        return sum(len(worker.attempts) for worker in await workers.workers(owner=owner))

    await harness.until(lambda: both(workers))
    (worker,) = await workers.workers(owner=None)

    assert worker.alive
    assert worker.jobs == 2
    assert (worker.name or "").endswith(f"-{worker.id}")
    assert {attempt.upload for attempt in worker.attempts} == set(gate.inside)
    assert {attempt.number for attempt in worker.attempts} == {1}
    assert (await held("acme"), await held("nobody")) == (1, 0)
    gate.open()


@pytest.mark.options(worker_heartbeat=60.0)
async def test_a_worker_that_was_silent_for_too_long_is_not_alive(harness: PipelineHarness) -> None:
    gate = Gate()
    leader = harness.orchestrate()
    harness.work({"step": gate})
    await harness.batch({"a.txt": b"x"})
    workers = PostgresWorkers(harness.pool, dead_after=30)
    await harness.until(lambda: some(workers))
    await harness.stop(leader)  # or it would abandon the attempt

    await harness.fetch_none("UPDATE procrastinate_workers SET last_heartbeat = 'epoch'")
    (silent,) = await PostgresWorkers(harness.pool, dead_after=0.001).workers(owner=None)
    await harness.fetch_none("DELETE FROM procrastinate_jobs")
    await harness.fetch_none("DELETE FROM procrastinate_workers")
    (gone,) = await workers.workers(owner=None)

    assert not silent.alive
    assert (gone.id, gone.alive, gone.last_heartbeat) == (None, False, None)
    assert gone.attempts == silent.attempts


async def test_a_worker_that_the_queue_has_forgotten_comes_back_under_a_new_name(
    harness: PipelineHarness,
) -> None:
    workers = PostgresWorkers(harness.pool, dead_after=30)

    async def known() -> list[int | None]:
        return [worker.id for worker in await workers.workers(owner=None)]

    harness.work({"step": Gate()})
    before = await harness.until(known)
    await harness.fetch_none("DELETE FROM procrastinate_workers")
    after = await harness.until(known)

    assert after != before


async def some(workers: PostgresWorkers) -> bool:
    return any(worker.attempts for worker in await workers.workers(owner=None))


async def both(workers: PostgresWorkers) -> bool:
    return [len(worker.attempts) for worker in await workers.workers(owner=None)] == [2]
