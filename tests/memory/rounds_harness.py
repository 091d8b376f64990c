"""Harness of the contract of `Rounds` in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from infrastructure.settings import Settings
from tests.contracts.rounds import RoundsHarness
from tests.memory.database import Client, MemoryDatabase, Session, SessionClient, Wire
from tests.memory.event_log import memory_event_log
from tests.memory.rounds import MemoryRounds, MemoryRunnableUploads


class MemoryRoundsHarness:
    def __init__(self, database: MemoryDatabase, settings: Settings) -> None:
        client = SessionClient(database, Session(database), Wire())
        self.rounds = MemoryRounds(client, settings)
        self.log = memory_event_log(database)
        self.runnable = MemoryRunnableUploads(Client(database))
        self._database = database

    async def now(self) -> datetime:
        return self._database.now()

    async def register_worker(self, *, silent_for: float) -> int:
        id = next(self._database.worker_ids)
        self._database.workers[id] = self._database.now() - timedelta(seconds=silent_for)
        return id

    async def start_job(self, job: int, worker: int) -> None:
        row = self._database.jobs[job]
        row.status, row.worker = "doing", worker

    async def jobs(self) -> list[tuple[int, str, list[str], datetime | None]]:
        return [
            (job.id, job.status, job.args["uploads"], job.scheduled_at)
            for _, job in sorted(self._database.jobs.items())
        ]


@asynccontextmanager
async def memory_rounds(settings: Settings) -> AsyncIterator[RoundsHarness]:
    harness = MemoryRoundsHarness(MemoryDatabase(), settings)
    async with harness.log:
        yield harness
