"""The worker: runs jobs of the queue, and goes on after restarts of the database."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

import procrastinate
import procrastinate.worker
import psycopg
import structlog
from procrastinate.exceptions import ConnectorException
from procrastinate.jobs import DeleteJobCondition, Job
from procrastinate.retry import BaseRetryStrategy, RetryDecision

from application.pipeline import Processor
from application.ports.blobs import BlobStore
from application.ports.event_log import EventLog
from application.ports.jobs import RunnableUpload, RunnableUploads
from application.worker.runner import AttemptRunner
from domain.upload.aggregate import Upload
from infrastructure.backoff import Backoff
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.event_log import (
    SNAPSHOT_TOPICS,
    Aggregate,
    apply_event,
    decode_snapshot,
)
from infrastructure.event_store.libpq import uuids
from infrastructure.jobs.queue import QUEUE, TASK
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool, make_raw_pool
from infrastructure.settings import Settings
from infrastructure.tasks import cancel_and_wait

POLL_INTERVAL = 0.1  # seconds between two queries for new and scheduled jobs
QUEUE_CONNECTIONS = 4
PRUNE_INTERVAL = 3600.0  # seconds
FAILED_JOB_RETENTION_HOURS = 72
MIN_BACKOFF = 0.05  # seconds
MAX_BACKOFF = 5.0

# A crash may lose a job's status: the job is then delivered again, and finds its uploads done.
_QUEUE_SETTINGS = {"synchronous_commit": "off"}

_IS_REGISTERED = "SELECT EXISTS (SELECT FROM procrastinate_workers WHERE id = %(id)s) AS known"

_CONNECTION_LOST = (psycopg.Error, OSError, ConnectorException)

_log = structlog.get_logger(__name__)


OpenQueue: TypeAlias = Callable[[], AbstractAsyncContextManager[procrastinate.App]]
"""Opens the job queue for one session of a worker."""


def postgres_queue(url: str) -> OpenQueue:
    """Return an opener of the job queue in this database."""

    @asynccontextmanager
    async def open_queue() -> AsyncIterator[procrastinate.App]:
        app = procrastinate.App(connector=procrastinate.PsycopgConnector())
        # A pool of ours: the library's own, when cancelled while it opens, is never closed. The
        # library translates the errors of psycopg itself.
        queue = make_raw_pool(
            url, name="worker", max_size=QUEUE_CONNECTIONS, settings=_QUEUE_SETTINGS
        )
        async with queue as pool, app.open_async(pool):
            yield app

    return open_queue


class Worker:
    """Runs the uploads that the orchestrator enqueues; any number may run, on any machines.

    `processors` are those that pipelines can name; `now` gives the time in UTC, `random` a
    number from 0 to 1 for the backoff.
    """

    def __init__(
        self,
        open_queue: OpenQueue,
        runnable: RunnableUploads,
        log: EventLog,
        blobs: BlobStore,
        processors: Mapping[str, Processor],
        settings: Settings,
        now: Callable[[], datetime],
        random: Callable[[], float],
    ) -> None:
        logging.getLogger("procrastinate").setLevel(logging.WARNING)  # else a line for every job
        self._open_queue = open_queue
        self._settings = settings
        self._last_id: int | None = None
        self._stop = asyncio.Event()
        self._session: _WorkerSession | None = None
        self._make_runner: Callable[[], AttemptRunner] = lambda: AttemptRunner(
            log,
            blobs,
            runnable,
            processors,
            settings.pipelines,
            concurrency=settings.worker_concurrency,
            progress_interval=settings.step_progress_interval,
            max_losses=settings.max_worker_losses,
            now=now,
            random=random,
        )

    @property
    def id(self) -> int | None:
        """Id under which it is registered with the queue; None while it is not."""
        return self._session.worker_id if self._session is not None else None

    async def run(self) -> None:
        """Work until cancelled; then give back the jobs in progress, and return.

        The work itself is asked to stop, not cancelled: in Python 3.11 a cancellation at the
        moment a pool hands out a connection is lost, and the work would not end.
        """
        self._stop = asyncio.Event()
        work = asyncio.create_task(self._keep_working(), name="worker-keeps-working")
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stop.set()
            if self._session is not None:
                self._session.stop()
            await asyncio.wait((work,))
            raise

    async def _keep_working(self) -> None:
        backoff = Backoff(MIN_BACKOFF, MAX_BACKOFF)
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began, failure = loop.time(), None
            try:
                await self._work()
            except Exception as error:
                failure = error
            if loop.time() - began > MAX_BACKOFF:
                backoff.reset()
            pause = backoff.next_pause()
            if isinstance(failure, _CONNECTION_LOST):
                _log.warning("worker_interrupted", error=str(failure), retry_in=pause)
            elif failure is not None:
                _log.error("worker_failed", retry_in=pause, exc_info=failure)
            elif not self._stop.is_set():
                _log.warning("worker_interrupted", retry_in=pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop.wait()

    async def _work(self) -> None:
        """Run one session, with an id and attempts of its own, until it stops by itself."""
        runner = self._make_runner()
        async with self._open_queue() as app:
            session = _WorkerSession(app, runner, self._settings)
            app.task(name=TASK, queue=QUEUE, retry=_ReturnToQueue())(session.process)
            await self._unregister_last(app)
            helpers = (
                asyncio.create_task(runner.monitor(), name="attempt-monitor"),
                asyncio.create_task(_prune_jobs(app), name="prune"),
                asyncio.create_task(
                    _watch_registration(
                        app, lambda: session.worker_id, self._settings.worker_heartbeat
                    ),
                    name="registration",
                ),
            )
            for helper in helpers:
                helper.add_done_callback(session.stop_after_failure)
            try:
                if not self._stop.is_set():
                    self._session = session
                    await session.run()  # type: ignore[no-untyped-call]
            finally:
                self._session = None
                self._last_id = session.worker_id
                await cancel_and_wait(*helpers)

    async def _unregister_last(self, app: procrastinate.App) -> None:
        """End the registration of the last session, so that its jobs need not time out."""
        if self._last_id is not None:
            await app.job_manager.unregister_worker(self._last_id)
            self._last_id = None


class _WorkerSession(procrastinate.worker.Worker):
    """A worker of the queue that gives back its running attempts as soon as it has to stop."""

    def __init__(self, app: procrastinate.App, runner: AttemptRunner, settings: Settings) -> None:
        super().__init__(
            app,
            queues=[QUEUE],
            name="uptrail",
            concurrency=settings.worker_concurrency,
            fetch_job_polling_interval=POLL_INTERVAL,
            listen_notify=False,  # its listener may outlive a cancellation; polling is cheap
            shutdown_graceful_timeout=settings.shutdown_grace,
            delete_jobs=DeleteJobCondition.SUCCESSFUL,
            install_signal_handlers=False,
            update_heartbeat_interval=settings.worker_heartbeat,
            stalled_worker_timeout=settings.worker_dead_after,
        )
        self._runner = runner
        self._name = f"{socket.gethostname()}-{os.getpid()}"

    def stop(self) -> None:
        self._runner.stop()
        super().stop()  # type: ignore[no-untyped-call]

    async def _persist_job_status(self, *job: Any, **more: Any) -> None:
        """Record the end of a job; on failure, stop, so that another session begins.

        The queue then knows that the job has no worker, and delivers it again.
        """
        try:
            await super()._persist_job_status(*job, **more)
        except _CONNECTION_LOST as error:
            _log.warning("job_status_not_saved", error=str(error))
            self.stop()

    def stop_after_failure(self, helper: asyncio.Task[Any]) -> None:
        """Stop this session if a task that it depends on has failed."""
        if not helper.cancelled() and (error := helper.exception()):
            _log.error("worker_helper_failed", helper=helper.get_name(), exc_info=error)
            self.stop()

    async def process(self, batch: str, uploads: list[str]) -> None:
        """Attempt the uploads of one job. Raises JobReturned if some were given back."""
        name = f"{self._name}-{self.worker_id}"
        if not await self._runner.run_job([UUID(upload) for upload in uploads], name):
            raise JobReturned(f"uploads of batch {batch} go to another worker")


class JobReturned(Exception):
    """Part of a job is left to do, without an error."""


class _ReturnToQueue(BaseRetryStrategy):
    """Retry strategy that makes an unfinished job available at once, for any worker."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if isinstance(exception, JobReturned | asyncio.CancelledError):
            return RetryDecision(retry_in={"seconds": 0})
        return None


async def _prune_jobs(app: procrastinate.App) -> Any:
    """Delete failed jobs after their retention time; successful ones are not kept."""
    while True:
        with suppress(*_CONNECTION_LOST):
            await app.job_manager.delete_old_jobs(
                FAILED_JOB_RETENTION_HOURS,
                include_failed=True,
                include_cancelled=True,
                include_aborted=True,
            )
        await asyncio.sleep(PRUNE_INTERVAL)


class WorkerDeregistered(Exception):
    """The queue has deleted this worker after too long a silence: others have its jobs."""


async def _watch_registration(
    app: procrastinate.App, worker: Callable[[], int | None], interval: float
) -> None:
    """Check every `interval` seconds until cancelled; `worker` returns its id once it has one.

    Raises WorkerDeregistered. An unreachable server proves nothing.
    """
    while True:
        await asyncio.sleep(interval)
        if (id := worker()) is None:
            continue
        with suppress(*_CONNECTION_LOST):
            row = await app.connector.execute_query_one_async(_IS_REGISTERED, id=id)
            if not row["known"]:
                raise WorkerDeregistered(f"the queue has forgotten worker {id}")


# The version is compared: the retry time of an earlier failure does not apply to a later one.
_RUNNING = """
SELECT m.upload, CASE WHEN m.state = 'retry_scheduled' AND m.retry_at <= now() THEN m.version END
FROM orchestration.members m JOIN orchestration.batches b ON b.batch = m.batch
WHERE m.upload = ANY(%s) AND NOT b.paused AND b.state IN ('open', 'sealed')"""

_SNAPSHOTS = """
SELECT DISTINCT ON (originator_id) originator_id, state FROM stored_snapshots
WHERE originator_id = ANY(%s) AND topic = ANY(%s)
ORDER BY originator_id, originator_version DESC"""

# Stream by stream along the index, also while statistics make the planner take the log for small.
_EVENTS = """
SELECT wanted.id, later.originator_version, later.topic, later.state
FROM unnest(%s::uuid[]) AS wanted (id)
CROSS JOIN LATERAL (
    SELECT originator_version, topic, state FROM stored_events
    WHERE originator_id = wanted.id AND originator_version > coalesce(
        (SELECT max(originator_version) FROM stored_snapshots
         WHERE originator_id = wanted.id AND topic = ANY(%s)), 0)
    ORDER BY originator_version OFFSET 0) AS later
ORDER BY wanted.id, later.originator_version"""


class PostgresRunnableUploads:
    """The port `RunnableUploads`: reads all uploads of a job in one exchange with the server."""

    def __init__(self, pool: Pool, codec: Codec = CODEC) -> None:
        self._pool = pool
        self._codec = codec

    async def load(self, uploads: Sequence[UUID]) -> Sequence[RunnableUpload]:
        async with self._pool.connection() as connection:
            return await self._load(connection, uploads)

    async def _load(
        self, connection: Connection, uploads: Sequence[UUID]
    ) -> Sequence[RunnableUpload]:
        ids, topics = uuids(uploads), list(SNAPSHOT_TOPICS)
        running, events, snapshots = (connection.cursor(binary=True) for _ in range(3))
        async with connection.pipeline():
            await running.execute(_RUNNING, (ids,), prepare=True)
            await events.execute(_EVENTS, (ids, topics), prepare=True)
            # After the events: a snapshot that was taken meanwhile is then newer, not missing.
            await snapshots.execute(_SNAPSHOTS, (ids, topics), prepare=True)
        due_at: dict[UUID, int | None] = dict(await running.fetchall())
        later = await events.fetchall()
        await self._codec.load_keys(state for _, _, _, state in later)
        known = _fold_all(self._codec, await snapshots.fetchall(), later)
        loaded = [known.get(upload) for upload in uploads if upload in due_at]
        return [
            RunnableUpload(upload, retry_due=due_at[upload.id] == upload.version)
            for upload in loaded
            if isinstance(upload, Upload)
        ]


def _fold_all(
    codec: Codec,
    snapshots: Iterable[tuple[UUID, bytes]],
    events: Iterable[tuple[UUID, int, str, bytes]],
) -> dict[UUID, Aggregate]:
    """Fold snapshots and later events into the aggregates as of now."""
    known: dict[UUID, Aggregate] = {id: decode_snapshot(state) for id, state in snapshots}
    for id, version, topic, state in events:
        before = known.get(id)
        if before is None or version > before.version:
            after = apply_event(id, before, codec.decode(topic, state)[0])
            if after is not None:
                known[id] = after
    return known
