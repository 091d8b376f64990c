"""The worker: takes jobs from the queue, and lives through restarts of the database."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any
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
from application.worker.attempts import Attempts
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.jobs.clearance import PostgresClearance
from infrastructure.jobs.queue import QUEUE, TASK
from infrastructure.jobs.registration import stay_known
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.settings import Settings
from infrastructure.tasks import end

POLL = 0.1  # seconds between two looks for jobs, new ones and those whose moment has come
CONNECTIONS = 4
PRUNE = 3600.0  # seconds between two clearings of the queue
KEPT_HOURS = 72  # for which a job that failed is kept
LONGEST_BACKOFF = 5.0  # seconds

# The queue's own marks may be lost in a crash: a job is then delivered again, and dropped.
_QUEUE_SETTINGS = {"synchronous_commit": "off"}

_LOST = (psycopg.Error, OSError, ConnectorException)

_log = structlog.get_logger(__name__)


class Worker:
    """Runs the uploads that the orchestrator releases; any number may run, on any machines.

    `processors` are those that pipelines can name; `now` gives the time in UTC, `random` a
    number from 0 to 1 for the backoff.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        log: EventLog,
        blobs: BlobStore,
        processors: Mapping[str, Processor],
        settings: Settings,
        now: Callable[[], datetime],
        random: Callable[[], float],
        codec: Codec = CODEC,
    ) -> None:
        logging.getLogger("procrastinate").setLevel(logging.WARNING)  # else a line for every job
        self._url = url
        self._settings = settings
        self._last: int | None = None
        self._stop = asyncio.Event()
        self._incarnation: _Incarnation | None = None
        self._make_attempts: Callable[[], Attempts] = lambda: Attempts(
            log,
            blobs,
            PostgresClearance(pool, codec),
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
        """The number that the queue knows it by; None while it does not."""
        return self._incarnation.worker_id if self._incarnation is not None else None

    async def run(self) -> None:
        """Works until cancelled; then gives back what it was doing, and ends.

        The work itself is told to stop, not cancelled: in Python 3.11 a cancellation that
        meets a connection just handed out by a pool is lost, and with it the end.
        """
        self._stop = asyncio.Event()
        work = asyncio.create_task(self._keep_working(), name="worker-keeps-working")
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            self._stop.set()
            if self._incarnation is not None:
                self._incarnation.stop()
            await asyncio.wait((work,))
            raise

    async def _keep_working(self) -> None:
        backoff = 0.05
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            began = loop.time()
            try:
                await self._work()
                if not self._stop.is_set():
                    _log.warning("worker_interrupted", retry_in=backoff)
            except _LOST as error:
                _log.warning("worker_interrupted", error=str(error), retry_in=backoff)
            except Exception:
                _log.exception("worker_failed", retry_in=backoff)
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff):
                    await self._stop.wait()
            lasted = loop.time() - began
            backoff = 0.05 if lasted > LONGEST_BACKOFF else min(2 * backoff, LONGEST_BACKOFF)

    async def _work(self) -> None:
        """One incarnation, with a name and attempts of its own, until it stops by itself."""
        attempts = self._make_attempts()
        app = procrastinate.App(connector=procrastinate.PsycopgConnector())
        incarnation = _Incarnation(app, attempts, self._settings)
        app.task(name=TASK, queue=QUEUE, retry=_GiveBack())(incarnation.process)
        # A pool of ours: the library's own, when cancelled while it opens, is never closed.
        queue = make_pool(self._url, name="worker", max_size=CONNECTIONS, settings=_QUEUE_SETTINGS)
        async with queue as pool, app.open_async(pool):
            await self._forget_last(app)
            helpers = (
                asyncio.create_task(attempts.keep(), name="attempts"),
                asyncio.create_task(_prune(app), name="prune"),
                asyncio.create_task(
                    stay_known(app, lambda: incarnation.worker_id, self._settings.worker_heartbeat),
                    name="registration",
                ),
            )
            for helper in helpers:
                helper.add_done_callback(incarnation.stop_without)
            try:
                if not self._stop.is_set():
                    self._incarnation = incarnation
                    await incarnation.run()  # type: ignore[no-untyped-call]
            finally:
                self._incarnation = None
                self._last = incarnation.worker_id
                await end(*helpers)

    async def _forget_last(self, app: procrastinate.App) -> None:
        """Says that the last incarnation is dead, rather than leave it to be found out."""
        if self._last is not None:
            await app.job_manager.unregister_worker(self._last)
            self._last = None


class _Incarnation(procrastinate.worker.Worker):
    """A worker of the queue that hands its running attempts back as soon as it has to stop."""

    def __init__(self, app: procrastinate.App, attempts: Attempts, settings: Settings) -> None:
        super().__init__(
            app,
            queues=[QUEUE],
            name="uptrail",
            concurrency=settings.worker_concurrency,
            fetch_job_polling_interval=POLL,
            listen_notify=False,  # its listener may outlive a cancellation; looking is cheap
            shutdown_graceful_timeout=settings.shutdown_grace,
            delete_jobs=DeleteJobCondition.SUCCESSFUL,
            install_signal_handlers=False,
            update_heartbeat_interval=settings.worker_heartbeat,
            stalled_worker_timeout=settings.worker_dead_after,
        )
        self._attempts = attempts
        self._name = f"{socket.gethostname()}-{os.getpid()}"

    def stop(self) -> None:
        self._attempts.stop()
        super().stop()  # type: ignore[no-untyped-call]

    async def _persist_job_status(self, *job: Any, **more: Any) -> None:
        """Mark the end of a job. Where that fails, another incarnation begins: the queue then knows
        that the job has no worker, and it is given to one again."""
        try:
            await super()._persist_job_status(*job, **more)
        except _LOST as error:
            _log.warning("job_not_marked", error=str(error))
            self.stop()

    def stop_without(self, helper: asyncio.Task[Any]) -> None:
        """Ends this incarnation when something it cannot do without has failed."""
        if not helper.cancelled() and (error := helper.exception()):
            _log.error("worker_helper_failed", helper=helper.get_name(), exc_info=error)
            self.stop()

    async def process(self, batch: str, uploads: list[str]) -> None:
        """The task: attempts what may be attempted. Raises GivenBack if something is left."""
        name = f"{self._name}-{self.worker_id}"
        if not await self._attempts.run_job([UUID(upload) for upload in uploads], name):
            raise GivenBack(f"uploads of batch {batch} go to another worker")


class GivenBack(Exception):
    """Part of the job is not done, and nobody is at fault."""


class _GiveBack(BaseRetryStrategy):
    """A job that is not done is there again at once, for whoever is free."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        if isinstance(exception, GivenBack | asyncio.CancelledError):
            return RetryDecision(retry_in={"seconds": 0})
        return None


async def _prune(app: procrastinate.App) -> Any:
    """Jobs that failed are kept for a while, to be looked at; those that succeeded are not."""
    while True:
        with suppress(*_LOST):
            await app.job_manager.delete_old_jobs(
                KEPT_HOURS, include_failed=True, include_cancelled=True, include_aborted=True
            )
        await asyncio.sleep(PRUNE)
