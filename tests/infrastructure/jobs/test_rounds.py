"""The orchestrator's tables on PostgreSQL keep their contract, and agree with those in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from application.append import append_to_stream
from domain.upload.state import UploadState
from infrastructure.event_store.event_log import save_snapshot
from infrastructure.jobs import worker
from infrastructure.jobs.rounds import SESSION_SETTINGS, PostgresRounds
from infrastructure.jobs.worker import PostgresRunnableUploads
from infrastructure.postgres.connection import connect
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.settings import Settings
from tests.builders import NOON, queued, received, registered
from tests.contracts.rounds import (
    SETTINGS,
    OpenRounds,
    RoundsContract,
    RoundsHarness,
    batch_of,
    changes_of,
    everything_selected,
    random_changes,
    saved,
    upload_of,
)
from tests.harness import open_log
from tests.memory.rounds_harness import memory_rounds

_JOBS = (
    "SELECT id, status::text, args -> 'uploads', scheduled_at FROM procrastinate_jobs ORDER BY id"
)
_REGISTER = """INSERT INTO procrastinate_workers (last_heartbeat)
VALUES (now() - make_interval(secs => %s)) RETURNING id"""
_START = "UPDATE procrastinate_jobs SET status = 'doing', worker_id = %s WHERE id = %s RETURNING id"


class PostgresRoundsHarness:
    def __init__(self, pool: Pool, rounds: PostgresRounds, log: Any) -> None:
        self.rounds = rounds
        self.log = log
        self.runnable = PostgresRunnableUploads(pool)
        self._pool = pool

    async def now(self) -> datetime:
        return (await self._fetch("SELECT now()"))[0][0]  # type: ignore[no-any-return]

    async def register_worker(self, *, silent_for: float) -> int:
        return int((await self._fetch(_REGISTER, silent_for))[0][0])

    async def start_job(self, job: int, worker: int) -> None:
        await self._fetch(_START, worker, job)

    async def jobs(self) -> list[tuple[Any, ...]]:
        return await self._fetch(_JOBS)

    async def _fetch(self, query: Any, *parameters: object) -> list[tuple[Any, ...]]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(query, parameters)).fetchall()


@asynccontextmanager
async def postgres_rounds(url: str, settings: Settings) -> AsyncIterator[RoundsHarness]:
    async with (
        make_pool(url, name="test", max_size=2) as pool,
        open_log(url) as log,
        await connect(url, name="orchestrator", settings=SESSION_SETTINGS) as connection,
    ):
        yield PostgresRoundsHarness(pool, PostgresRounds(connection, settings), log)


class TestPostgresRounds(RoundsContract):
    @pytest.fixture
    def open_rounds(self, database_url: str) -> OpenRounds:
        return lambda settings: postgres_rounds(database_url, settings)


async def test_tables_in_memory_select_what_those_on_postgresql_do(database_url: str) -> None:
    settings = replace(SETTINGS, in_flight_per_batch=6, in_flight_per_owner=9)
    async with (
        postgres_rounds(database_url, settings) as stored,
        memory_rounds(settings) as remembered,
    ):
        assert await stored.rounds.load_position() == await remembered.rounds.load_position() == 0
        random = Random(1)
        for after in range(60):
            at = NOON + timedelta(seconds=3 * after)
            changes = random_changes(random, at)
            one = await everything_selected(stored, changes, after=after, at=at)
            other = await everything_selected(remembered, changes, after=after, at=at)
            assert one == other, after


async def test_events_that_a_snapshot_includes_are_not_applied_to_it(
    database_url: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that is stored after the events were read and before it is read itself."""
    monkeypatch.setattr(worker, "_EVENTS", worker._EVENTS.replace("> coalesce(", "> 0 * coalesce("))
    batch, settings = batch_of(1), SETTINGS
    tracked = upload_of(batch, 1, UploadState.QUEUED)
    async with postgres_rounds(database_url, settings) as harness:
        id = tracked.upload.id
        await harness.log.append(append_to_stream(id, 0, registered(), received(), queued()))
        await saved(harness, changes_of([batch], [tracked]))
        async with pool.connection() as connection:
            await save_snapshot(connection, await harness.log.upload(id))

        (loaded,) = await harness.runnable.load([id])

        assert loaded.upload == await harness.log.upload(id)
