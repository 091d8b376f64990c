"""Heartbeats list a process with its roles and state while it runs."""

from __future__ import annotations

import asyncio
import os

import pytest

from infrastructure.jobs.heartbeat import (
    MAX_SILENCE,
    PostgresWorkers,
    ProcessHeartbeat,
    ProcessStatus,
)
from infrastructure.postgres.pool import make_pool
from infrastructure.tasks import cancel_and_wait
from tests.support import eventually

FOREVER = 3600.0  # seconds


async def test_a_process_is_listed_while_it_runs_with_what_it_is_now(database_url: str) -> None:
    async with make_pool(database_url, name="test", max_size=3) as pool:
        workers = PostgresWorkers(pool, dead_after=30)
        status = ProcessStatus()
        heartbeat = ProcessHeartbeat(pool, ("orchestrator", "worker"), status, 0.01)
        running = asyncio.create_task(heartbeat.run())
        (first,) = await eventually(workers.processes)

        status.leads, status.worker = lambda: True, lambda: 7
        (later,) = await eventually(lambda: with_worker(workers))
        await cancel_and_wait(running)

        assert (first.roles, first.pid) == (["orchestrator", "worker"], os.getpid())
        assert (first.alive, first.leads, first.worker) == (True, False, None)
        assert (later.id, later.leads, later.started_at) == (first.id, True, first.started_at)
        assert later.last_heartbeat > first.last_heartbeat
        assert await workers.processes() == []


@pytest.mark.parametrize(("silence", "kept"), [(60, 1), (MAX_SILENCE + 60, 0)])
async def test_a_silent_one_is_marked_and_forgotten_after_an_hour(
    database_url: str, silence: float, kept: int
) -> None:
    async with make_pool(database_url, name="test", max_size=3) as pool:
        workers = PostgresWorkers(pool, dead_after=30)
        async with pool.connection() as connection:
            await connection.execute(
                """INSERT INTO orchestration.processes (id, machine, pid, roles, version, leads,
                seen_at) VALUES (gen_random_uuid(), 'gone', 1, '{api}', '0', false,
                now() - make_interval(secs => %s))""",
                (silence,),
            )
        heartbeat = ProcessHeartbeat(pool, ("api",), ProcessStatus(), FOREVER)
        running = asyncio.create_task(heartbeat.run())
        await eventually(lambda: alive(workers))

        await eventually(lambda: count(workers, 1 + kept))
        dead = [one.machine for one in await workers.processes() if not one.alive]
        await cancel_and_wait(running)

        assert dead == ["gone"] * kept


async def with_worker(workers: PostgresWorkers) -> object:
    found = await workers.processes()
    return found if any(one.worker for one in found) else None


async def alive(workers: PostgresWorkers) -> bool:
    return any(one.alive for one in await workers.processes())


async def count(workers: PostgresWorkers, wanted: int) -> bool:
    return len(await workers.processes()) == wanted
