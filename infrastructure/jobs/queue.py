"""The job queue between orchestrator and workers: one task of procrastinate 3."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from procrastinate import App, PsycopgConnector
from procrastinate.jobs import Job as QueuedJob

from application.orchestrator import Job
from infrastructure.postgres.connection import Connection

QUEUE = "uploads"
TASK = "process"


class JobQueue:
    """Defers jobs on a connection, and in a transaction, of the caller."""

    def __init__(self) -> None:
        # Never opened: the library uses the connection that is passed to it.
        self._manager = App(connector=PsycopgConnector()).job_manager

    async def defer(self, connection: Connection, jobs: Sequence[Job]) -> dict[UUID, int]:
        """Defer the jobs and return, by upload, the id of the job that carries it."""
        if not jobs:
            return {}
        queued = [_queued(job) for job in jobs]
        deferred = await self._manager.batch_defer_jobs_async(queued, connection=connection)
        return {
            upload: _id(queue)
            for job, queue in zip(jobs, deferred, strict=True)
            for upload in job.uploads
        }


def task_arguments(job: Job) -> dict[str, Any]:
    """Return the arguments of the task `process`."""
    return {"batch": str(job.batch), "uploads": [str(upload) for upload in job.uploads]}


def _queued(job: Job) -> QueuedJob:
    return QueuedJob(
        queue=QUEUE,
        task_name=TASK,
        lock=None,
        queueing_lock=None,
        task_kwargs=task_arguments(job),
        scheduled_at=job.at,
    )


def _id(job: QueuedJob) -> int:
    assert job.id is not None
    return job.id
