"""One open attempt: its place in the log, how far it is, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from application.append import StreamAppend
from application.errors import Conflict, OutcomeUnknown, Unavailable
from application.ports.event_log import EventLog
from application.worker.scribe import Scribe
from application.worker.verdict import Failed, Held, Passed, Verdict
from domain.errors import StaleAttempt
from domain.event import Event
from domain.upload.aggregate import Upload
from domain.upload.state import UploadState

AGAIN = 0.5  # seconds before a log that cannot be reached is tried again


class Attempt:
    """Speaks for an upload from `AttemptStarted` on; raises StaleAttempt once it may not.

    Every event is appended at the version this attempt knows. Whoever else appends to the
    stream meanwhile has taken the upload away from it. A `scribe` writes for several attempts.
    """

    def __init__(
        self,
        log: EventLog,
        upload: Upload,
        worker: str,
        now: Callable[[], datetime],
        scribe: Scribe | None = None,
    ) -> None:
        self.upload = upload
        self.worker = worker
        self.started_at = now()
        self.artifacts: dict[str, str] = {}
        self._log = log
        self._scribe = scribe or Scribe(log)
        self._now = now
        self._by = f"worker:{worker}"
        self._turn = asyncio.Lock()

    @property
    def number(self) -> int:
        return self.upload.attempt

    async def begin(self) -> None:
        """Claims the upload. Raises StaleAttempt, CommandRejected, Unavailable."""
        await self._record(
            lambda upload: upload.start_attempt(self.worker, at=self._now(), by=self._by)
        )

    async def progress(self, step: str, done: int, total: int | None) -> None:
        """Records how far a step is. Raises StaleAttempt, Unavailable."""
        await self._record(
            lambda upload: upload.progress_step(
                self.number, step, done, total, at=self._now(), by=self._by
            )
        )

    async def end(self, verdict: Verdict, random: float) -> None:
        """Records the verdict, however long the log cannot be reached. Raises StaleAttempt."""
        at = self._now()
        duration = max(0.0, (at - self.started_at).total_seconds())
        await self._surely(lambda upload: _ending(upload, verdict, duration, random, at, self._by))

    async def abandon(self, reason: str) -> None:
        """Gives the upload back without a verdict. Raises StaleAttempt."""
        at = self._now()
        await self._surely(
            lambda upload: upload.abandon_attempt(upload.attempt, reason, at=at, by=self._by)
        )

    def outdated_by(self, version: int) -> bool:
        """Whether the stream is at a version that this attempt did not bring it to."""
        return not self._turn.locked() and version > self.upload.version

    async def _surely(self, decide: Callable[[Upload], tuple[Event, ...]]) -> None:
        while True:
            try:
                return await self._record(decide)
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(AGAIN)
                if await self._completed_after_all():
                    return None

    async def _record(self, decide: Callable[[Upload], tuple[Event, ...]]) -> None:
        async with self._turn:
            events = decide(self.upload)
            recorded = self._scribe.record(self._write(events))
            try:
                await asyncio.wait((recorded,))
            finally:
                # Cancelled or not, whether it was recorded must be known before going on.
                if not recorded.done():
                    await asyncio.wait((recorded,))
                self._take(events, recorded)

    def _write(self, events: tuple[Event, ...]) -> StreamAppend:
        return StreamAppend(self.upload.id, self.upload.version, events, self.upload.owner)

    def _take(self, events: tuple[Event, ...], recorded: asyncio.Future[None]) -> None:
        try:
            recorded.result()
        except Conflict as conflict:
            raise StaleAttempt(str(conflict)) from None
        for event in events:
            self.upload = self.upload.evolve(event)  # type: ignore[arg-type]

    async def _completed_after_all(self) -> bool:
        """Asks a log that was lost: the last append may have been recorded nevertheless.

        Only this attempt can have completed the upload while its number is the last.
        Raises StaleAttempt if the attempt is over in any other way.
        """
        self._log.forget(self.upload.id)
        try:
            upload = await self._log.upload(self.upload.id)
        except Unavailable:
            return False
        if upload.attempt == self.number and upload.state is UploadState.COMPLETED:
            return True
        if (upload.attempt, upload.worker) != (self.number, self.worker):
            raise StaleAttempt(f"attempt {self.number} is over: the upload is {upload.state}")
        self.upload = upload
        return False


def _ending(
    upload: Upload, verdict: Verdict, duration: float, random: float, at: datetime, by: str
) -> tuple[Event, ...]:
    number = upload.attempt
    match verdict:
        case Passed(results, artifacts):
            return upload.succeed_attempt(
                number, results=results, artifacts=artifacts, duration=duration, at=at, by=by
            )
        case Failed(failure):
            return upload.fail_attempt(
                number, failure, duration=duration, random=random, at=at, by=by
            )
        case Held(failure):
            return upload.quarantine(number, failure, duration=duration, at=at, by=by)
