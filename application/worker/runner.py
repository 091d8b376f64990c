"""Attempts of one worker: concurrency, shutdown, and the return of unfinished uploads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from application.errors import OutcomeUnknown, Unavailable
from application.pipeline import Pipeline, Processor
from application.ports.blobs import BlobStore
from application.ports.event_log import EventLog
from application.ports.jobs import RunnableUpload, RunnableUploads
from application.worker.attempt import (
    AppendBatcher,
    AttemptWriter,
    PipelineOutcome,
    PipelinePassed,
)
from application.worker.pipeline_run import PipelineRun, StepLimiter
from domain.errors import CommandRejected, StaleAttempt

MONITOR_INTERVAL = 0.25  # seconds between two checks of the attempts under way
STOP_REASON = "worker stopping"


class AttemptSemaphore:
    """Semaphore of a worker's attempts, first come, first served; an exclusive one runs alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._free = asyncio.Semaphore(limit)
        self._next = asyncio.Lock()  # its holder is the next to get permits

    def acquire(self, *, exclusive: bool) -> _Permits:
        """Return a context that holds one permit; with `exclusive`, all of them."""
        return _Permits(self._free, self._next, self._limit if exclusive else 1)


class _Permits:
    """An async context manager; no generator, since every file passes through one."""

    def __init__(self, free: asyncio.Semaphore, next: asyncio.Lock, wanted: int) -> None:
        self._free = free
        self._next = next
        self._wanted = wanted
        self._held = 0

    async def __aenter__(self) -> None:
        try:
            async with self._next:
                while self._held < self._wanted:
                    await self._free.acquire()
                    self._held += 1
        except BaseException:
            self._release()
            raise

    async def __aexit__(self, *exc_info: object) -> None:
        self._release()

    def _release(self) -> None:
        for _ in range(self._held):
            self._free.release()


class AttemptRunner:
    """Runs the uploads of jobs, at most `concurrency` of them at once.

    `now` gives the time in UTC, `random` a number from 0 to 1 for the backoff.
    `progress_interval` is in seconds. An upload whose next loss of a worker would be number
    `max_losses`, its last, runs alone: if this worker dies as well, no other file is to blame.
    """

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        runnable: RunnableUploads,
        processors: Mapping[str, Processor],
        pipelines: Mapping[str, Pipeline],
        *,
        concurrency: int,
        progress_interval: float,
        max_losses: int,
        now: Callable[[], datetime],
        random: Callable[[], float],
    ) -> None:
        self._log = log
        self._batcher = AppendBatcher(log)
        self._blobs = blobs
        self._runnable = runnable
        self._processors = processors
        self._pipelines = pipelines
        self._progress_interval = progress_interval
        self._now = now
        self._random = random
        self._max_losses = max_losses
        self._attempts = AttemptSemaphore(concurrency)
        self._step_limiter = StepLimiter()
        self._running: dict[PipelineRun, asyncio.Task[PipelineOutcome]] = {}
        self._stopping = False

    async def run_job(self, uploads: Sequence[UUID], worker: str) -> bool:
        """Attempt each upload of a job that may be attempted; False if some were given back.

        `worker` is the name that attempts are recorded under. Raises Unavailable.
        """
        runnable = await self._runnable.load(uploads)
        attempts = (self._attempt(one, worker) for one in runnable)
        done = await asyncio.gather(*attempts, return_exceptions=True)
        for result in done:
            if isinstance(result, BaseException):
                raise result
        return all(done)

    def stop(self) -> None:
        """Abandon running attempts so that other workers take them, and start no more."""
        self._stopping = True
        for task in self._running.values():
            task.cancel()

    async def monitor(self) -> None:
        """Record progress of long steps, and stop stale attempts; until cancelled."""
        while True:
            await asyncio.sleep(min(MONITOR_INTERVAL, self._progress_interval))
            if self._running:
                await self._stop_stale()
                await asyncio.gather(*(self._record_progress(run) for run in list(self._running)))

    async def _attempt(self, runnable: RunnableUpload, worker: str) -> bool:
        if not runnable.may_start:
            return True
        losses = runnable.upload.losses
        async with self._attempts.acquire(exclusive=0 < losses >= self._max_losses - 1):
            if self._stopping:
                return False
            attempt = AttemptWriter(self._log, runnable.upload, worker, self._now, self._batcher)
            try:
                await attempt.begin()
            except (StaleAttempt, CommandRejected):
                return True  # another worker claimed it first, or it was cancelled
            except (Unavailable, OutcomeUnknown):
                return False
            outcome = await self._run(PipelineRun(attempt, self._blobs, self._step_limiter))
        return await self._conclude(attempt, outcome)

    async def _run(self, run: PipelineRun) -> PipelineOutcome | None:
        """Return None where the run was stopped before it had an outcome."""
        task = asyncio.create_task(run.execute(self._pipelines, self._processors))
        self._running[run] = task
        if self._stopping:
            task.cancel()
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            # The worker does not wait for its jobs any more: the step must not outlive it.
            task.cancel()
            await asyncio.wait((task,))
            raise
        finally:
            del self._running[run]
        if task.cancelled() or isinstance(task.exception(), StaleAttempt):
            return None
        return task.result()

    async def _conclude(self, attempt: AttemptWriter, outcome: PipelineOutcome | None) -> bool:
        try:
            if outcome is None:
                await attempt.abandon(STOP_REASON)
            else:
                await attempt.end(outcome, self._random())
        except StaleAttempt:
            outcome = None
        if not isinstance(outcome, PipelinePassed):
            await self._delete_artifacts(attempt)
        return not (outcome is None and self._stopping)

    async def _delete_artifacts(self, attempt: AttemptWriter) -> None:
        for blob in attempt.artifacts.values():
            await self._blobs.delete(blob)

    async def _stop_stale(self) -> None:
        try:
            versions = await self._log.versions([run.attempt.upload.id for run in self._running])
        except Unavailable:
            return
        for run, task in list(self._running.items()):
            version = versions.get(run.attempt.upload.id, 0)
            with suppress(Unavailable):  # the next check tries again
                if await run.attempt.is_stale(version):
                    task.cancel()

    async def _record_progress(self, run: PipelineRun) -> None:
        try:
            await run.record_progress(self._progress_interval)
        except (Unavailable, OutcomeUnknown):
            pass  # it is only progress: the next check tries again
        except StaleAttempt:
            if task := self._running.get(run):
                task.cancel()
