"""The job queue in memory: a connector of procrastinate on the rows of the in-memory database.

Each query does what the function of procrastinate's schema with its name does.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import procrastinate
import psycopg
from procrastinate import sql
from procrastinate.connector import BaseAsyncConnector
from procrastinate.exceptions import ConnectorException

from infrastructure.jobs.queue import QUEUE, TASK
from infrastructure.jobs.worker import _IS_REGISTERED, OpenQueue
from tests.memory.database import JobRow, MemoryDatabase, Wire
from tests.memory.rounds import delete_workers

_NAMES = {query: name for name, query in sql.queries.items()} | {_IS_REGISTERED: "is_registered"}


def memory_queue(
    database: MemoryDatabase,
    wire: Wire | None = None,
    *,
    on_open: Callable[[], None] = lambda: None,
) -> OpenQueue:
    """Return an opener of the queue for sessions of one worker."""

    @asynccontextmanager
    async def open_queue() -> AsyncIterator[procrastinate.App]:
        on_open()
        yield procrastinate.App(connector=MemoryConnector(database, wire or Wire()))

    return open_queue


class MemoryConnector(BaseAsyncConnector):
    """The queries that a worker of procrastinate makes."""

    def __init__(self, database: MemoryDatabase, wire: Wire) -> None:
        self._database = database
        self._wire = wire

    async def execute_query_async(self, query: str, **arguments: Any) -> None:
        await self._execute(query, arguments)

    async def execute_query_one_async(self, query: str, **arguments: Any) -> dict[str, Any]:
        row: dict[str, Any] = await self._execute(query, arguments)
        return row

    async def execute_query_all_async(self, query: str, **arguments: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await self._execute(query, arguments)
        return rows

    async def _execute(self, query: str, arguments: dict[str, Any]) -> Any:
        name = _NAMES[query]
        try:
            await self._wire.request(name)
            result = getattr(self, f"_{name}")(**arguments)
            await self._wire.response(name)
        except psycopg.Error as error:
            raise ConnectorException from error
        return result

    def _register_worker(self) -> dict[str, Any]:
        id = next(self._database.worker_ids)
        self._database.workers[id] = self._database.now()
        return {"worker_id": id}

    def _unregister_worker(self, worker_id: int) -> None:
        delete_workers(self._database, [worker_id])

    def _is_registered(self, id: int) -> dict[str, Any]:
        return {"known": id in self._database.workers}

    def _update_heartbeat(self, worker_id: int) -> None:
        if worker_id in self._database.workers:
            self._database.workers[worker_id] = self._database.now()

    def _prune_stalled_workers(self, seconds_since_heartbeat: float) -> list[dict[str, Any]]:
        before = self._database.now() - timedelta(seconds=seconds_since_heartbeat)
        stalled = [id for id, seen in self._database.workers.items() if seen < before]
        delete_workers(self._database, stalled)
        return [{"worker_id": id} for id in stalled]

    def _fetch_job(self, queues: Iterable[str] | None, worker_id: int) -> dict[str, Any]:
        now = self._database.now()
        for _, job in sorted(self._database.jobs.items()):
            if job.status == "todo" and (job.scheduled_at is None or job.scheduled_at <= now):
                if worker_id not in self._database.workers:
                    raise psycopg.errors.ForeignKeyViolation(f"there is no worker {worker_id}")
                job.status, job.worker = "doing", worker_id
                return _row(job)
        return {"id": None}

    def _finish_job(self, job_id: int, status: str, delete_job: bool) -> None:
        job = self._require(job_id)
        if delete_job:
            del self._database.jobs[job_id]
        else:
            job.status = status

    def _retry_job(self, job_id: int, retry_at: datetime, **_: Any) -> None:
        job = self._require(job_id)
        if job.status != "doing":
            raise psycopg.errors.RaiseException(f"job {job_id} is {job.status}, not doing")
        job.status, job.scheduled_at = "todo", retry_at

    def _list_jobs_to_abort(self, queue_name: str | None) -> list[dict[str, Any]]:
        return []

    def _delete_old_jobs(self, **_: Any) -> None:
        return

    def _require(self, id: int) -> JobRow:
        job = self._database.jobs.get(id)
        if job is None or job.status not in ("todo", "doing"):
            raise psycopg.errors.RaiseException(f"job {id} is not there any more")
        return job


def _row(job: JobRow) -> dict[str, Any]:
    return {
        "id": job.id,
        "queue_name": QUEUE,
        "task_name": TASK,
        "priority": 0,
        "lock": None,
        "queueing_lock": None,
        "args": job.args,
        "status": job.status,
        "scheduled_at": job.scheduled_at,
        "attempts": 0,
        "abort_requested": False,
        "worker_id": job.worker,
    }
