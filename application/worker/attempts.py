"""All attempts of one worker: how many run at once, who is told to stop, who is given back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from uuid import UUID

from application.errors import OutcomeUnknown, Unavailable
from application.pipeline import Pipeline, Processor
from application.ports.blobs import BlobStore
from application.ports.event_log import EventLog
from application.ports.jobs import Clearance, Cleared
from application.worker.attempt import Attempt
from application.worker.places import Places, Slots
from application.worker.running import Run
from application.worker.scribe import Scribe
from application.worker.verdict import Passed, Verdict
from domain.errors import CommandRejected, StaleAttempt

LOOK = 0.25  # seconds between two looks at what became of the attempts under way
STOPPING = "worker stopping"


class Attempts:
    """Runs the uploads of jobs, at most `concurrency` of them at once.

    `now` gives the time in UTC, `random` a number from 0 to 1 for the backoff.
    `progress_interval` is in seconds. An upload whose next loss of a worker would be number
    `max_losses`, its last, runs alone: if this worker dies as well, no other file is to blame.
    """

    def __init__(
        self,
        log: EventLog,
        blobs: BlobStore,
        clearance: Clearance,
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
        self._scribe = Scribe(log)
        self._blobs = blobs
        self._clearance = clearance
        self._processors = processors
        self._pipelines = pipelines
        self._progress_interval = progress_interval
        self._now = now
        self._random = random
        self._max_losses = max_losses
        self._slots = Slots(concurrency)
        self._places = Places()
        self._running: dict[Run, asyncio.Task[Verdict]] = {}
        self._stopping = False

    @property
    def running(self) -> int:
        """How many attempts are under way."""
        return len(self._running)

    async def run_job(self, uploads: Sequence[UUID], worker: str) -> bool:
        """Attempts each upload of a job that may be attempted; False if some were given back.

        `worker` is the name that attempts are recorded under. Raises Unavailable.
        """
        cleared = await self._clearance.cleared(uploads)
        attempts = (self._attempt(one, worker) for one in cleared)
        done = await asyncio.gather(*attempts, return_exceptions=True)
        for outcome in done:
            if isinstance(outcome, BaseException):
                raise outcome
        return all(done)

    def stop(self) -> None:
        """Gives back what is under way, and starts nothing more."""
        self._stopping = True
        for task in self._running.values():
            task.cancel()

    async def keep(self) -> None:
        """Records progress of what lasts, and stops what the log says is over; until cancelled."""
        while True:
            await asyncio.sleep(min(LOOK, self._progress_interval))
            if self._running:
                await self._stop_outdated()
                await asyncio.gather(*(self._record_progress(run) for run in list(self._running)))

    async def _attempt(self, cleared: Cleared, worker: str) -> bool:
        if not cleared.may_start:
            return True
        losses = cleared.upload.losses
        async with self._slots.slot(exclusive=0 < losses >= self._max_losses - 1):
            if self._stopping:
                return False
            attempt = Attempt(self._log, cleared.upload, worker, self._now, self._scribe)
            try:
                await attempt.begin()
            except (StaleAttempt, CommandRejected):
                return True  # somebody was faster, or it was called off
            except (Unavailable, OutcomeUnknown):
                return False
            verdict = await self._run(Run(attempt, self._blobs, self._places))
        return await self._conclude(attempt, verdict)

    async def _run(self, run: Run) -> Verdict | None:
        """None where the run was stopped before there was a verdict."""
        task = asyncio.create_task(run.through(self._pipelines, self._processors))
        self._running[run] = task
        if self._stopping:
            task.cancel()
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            # The worker is ending in a hurry: the step must not outlive it.
            task.cancel()
            await asyncio.wait((task,))
            raise
        finally:
            del self._running[run]
        if task.cancelled() or isinstance(task.exception(), StaleAttempt):
            return None
        return task.result()

    async def _conclude(self, attempt: Attempt, verdict: Verdict | None) -> bool:
        try:
            if verdict is None:
                await attempt.abandon(STOPPING)
            else:
                await attempt.end(verdict, self._random())
        except StaleAttempt:
            verdict = None
        if not isinstance(verdict, Passed):
            await self._clear_away(attempt)
        return not (verdict is None and self._stopping)

    async def _clear_away(self, attempt: Attempt) -> None:
        for blob in attempt.artifacts.values():
            await self._blobs.delete(blob)

    async def _stop_outdated(self) -> None:
        try:
            versions = await self._log.versions([run.attempt.upload.id for run in self._running])
        except Unavailable:
            return
        for run, task in self._running.items():
            version = versions.get(run.attempt.upload.id, 0)
            if run.attempt.outdated_by(version):
                task.cancel()

    async def _record_progress(self, run: Run) -> None:
        try:
            await run.record_progress(self._progress_interval)
        except (Unavailable, OutcomeUnknown):
            pass  # it is only progress: the next look tries again
        except StaleAttempt:
            if task := self._running.get(run):
                task.cancel()
