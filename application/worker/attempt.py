"""One open attempt in the log: its claim, its progress, and how it ends."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple, TypeAlias

import msgspec

from application.append import Append, StreamAppend
from application.errors import Conflict, OutcomeUnknown, Unavailable
from application.ports.event_log import EventLog
from application.worker.step_result import ErrorKind, describe_error
from domain.errors import StaleAttempt
from domain.event import Event
from domain.upload.aggregate import Failure, Upload
from domain.upload.state import UploadState

LOG_RETRY_INTERVAL = 0.5  # seconds before an append to an unreachable log is tried again
MAX_BATCHED_WRITES = 100
GATHER_TIME = 0.005  # seconds in which writes gather: attempts of small files end close together


class PipelinePassed(msgspec.Struct, frozen=True):
    """Every step passed: results by step, artifacts as name to blob name."""

    results: dict[str, dict[str, Any]]
    artifacts: dict[str, str]


class PipelineFailed(msgspec.Struct, frozen=True):
    """A step raised an error; the retry policy of the upload decides what follows."""

    failure: Failure


class PipelineQuarantined(msgspec.Struct, frozen=True):
    """A step found the file dangerous."""

    failure: Failure


PipelineOutcome: TypeAlias = PipelinePassed | PipelineFailed | PipelineQuarantined


def error_outcome(step: str, error: BaseException) -> PipelineFailed | PipelineQuarantined:
    """Return the outcome of a pipeline that an error of any class has ended in this step."""
    described = describe_error(error)
    failure = Failure(
        step=step,
        error_type=described.error_type,
        message=described.message,
        permanent=described.kind is not ErrorKind.RETRYABLE,
    )
    if described.kind is ErrorKind.QUARANTINE:
        return PipelineQuarantined(failure)
    return PipelineFailed(failure)


class _PendingWrite(NamedTuple):
    write: StreamAppend
    recorded: asyncio.Future[None]


class AppendBatcher:
    """Collects single writes of many attempts into few appends.

    Every write keeps its own expected version and gets its own result: a refused write does
    not fail the others. The queue is bounded by the number of attempts under way.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._pending: deque[_PendingWrite] = deque()
        self._writing: asyncio.Task[None] | None = None

    def submit(self, write: StreamAppend) -> asyncio.Future[None]:
        """Return a future that is done once the write is recorded.

        It fails with what `EventLog.append` raises. Cancelling the future does not cancel the
        write.
        """
        pending = _PendingWrite(write, asyncio.get_running_loop().create_future())
        self._pending.append(pending)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all(), name="append-batcher")
        return pending.recorded

    async def _write_all(self) -> None:
        try:
            while self._pending:
                await asyncio.sleep(GATHER_TIME)
                count = min(MAX_BATCHED_WRITES, len(self._pending))
                await self._write([self._pending.popleft() for _ in range(count)])
        finally:
            self._writing = None

    async def _write(self, group: list[_PendingWrite]) -> None:
        try:
            await self._log.append(Append(tuple(pending.write for pending in group)))
        except Exception as error:
            if len(group) == 1 or isinstance(error, Unavailable | OutcomeUnknown):
                _resolve(group, error)
            else:  # one of the writes is refused: alone, each gets its own result
                await asyncio.gather(*(self._write([pending]) for pending in group))
        else:
            _resolve(group, None)


def _resolve(group: list[_PendingWrite], error: Exception | None) -> None:
    for _, recorded in group:
        if error is None:
            recorded.set_result(None)
        else:
            recorded.set_exception(error)


class AttemptWriter:
    """Records the events of one attempt; raises StaleAttempt once the attempt is fenced off.

    Every event is appended at the version that this attempt knows. An append by any other
    process ends the attempt's right to write. `batcher` may be shared with other attempts.
    """

    def __init__(
        self,
        log: EventLog,
        upload: Upload,
        worker: str,
        now: Callable[[], datetime],
        batcher: AppendBatcher | None = None,
    ) -> None:
        self.upload = upload
        self.worker = worker
        self.started_at = now()
        self.artifacts: dict[str, str] = {}
        self._log = log
        self._batcher = batcher or AppendBatcher(log)
        self._now = now
        self._by = f"worker:{worker}"
        self._lock = asyncio.Lock()
        self._is_in_doubt = False  # whether the last append was recorded is unknown
        self._was_in_doubt = False  # once, so that an append may be recorded even later

    @property
    def number(self) -> int:
        return self.upload.attempt

    async def begin(self) -> None:
        """Claim the upload. Raises StaleAttempt, CommandRejected, Unavailable."""
        await self._record(
            lambda upload: upload.start_attempt(self.worker, at=self._now(), by=self._by)
        )

    async def record_progress(self, step: str, done: int, total: int | None) -> None:
        """Record the progress of a step. Raises StaleAttempt, Unavailable."""
        await self._record(
            lambda upload: upload.progress_step(
                self.number, step, done, total, at=self._now(), by=self._by
            )
        )

    async def end(self, outcome: PipelineOutcome, random: float) -> None:
        """Record the outcome, retrying while the log cannot be reached. Raises StaleAttempt."""
        at = self._now()
        duration = max(0.0, (at - self.started_at).total_seconds())
        await self._record_with_retries(
            lambda upload: _ending_events(upload, outcome, duration, random, at, self._by)
        )

    async def abandon(self, reason: str) -> None:
        """Return the upload to the queue without an outcome. Raises StaleAttempt."""
        at = self._now()
        await self._record_with_retries(
            lambda upload: upload.abandon_attempt(upload.attempt, reason, at=at, by=self._by)
        )

    async def is_stale(self, version: int) -> bool:
        """Return whether the stream is at a version that another writer brought it to.

        Raises Unavailable.
        """
        if self._lock.locked() or version <= self.upload.version:
            return False
        if not self._is_in_doubt:
            return True
        async with self._lock:
            try:
                await self._reload()
            except StaleAttempt:
                return True
        return False

    async def _record_with_retries(self, decide: Callable[[Upload], tuple[Event, ...]]) -> None:
        while True:
            try:
                return await self._record(decide)
            except StaleAttempt:
                if not self._was_in_doubt or not await self._has_completed():
                    raise
                return None
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(LOG_RETRY_INTERVAL)

    async def _record(self, decide: Callable[[Upload], tuple[Event, ...]]) -> None:
        async with self._lock:
            # Else a conflict with its own append would look like that of another writer.
            if self._is_in_doubt:
                await self._reload()
            events = decide(self.upload)
            write = StreamAppend(self.upload.id, self.upload.version, events, self.upload.owner)
            recorded = self._batcher.submit(write)
            try:
                await asyncio.wait((recorded,))
            finally:
                # Also when cancelled: the result must be known before the next event.
                if not recorded.done():
                    await asyncio.wait((recorded,))
                self._apply(events, recorded)

    def _apply(self, events: tuple[Event, ...], recorded: asyncio.Future[None]) -> None:
        try:
            recorded.result()
        except Conflict as conflict:
            raise StaleAttempt(str(conflict)) from None
        except OutcomeUnknown:
            self._is_in_doubt = self._was_in_doubt = True
            raise
        for event in events:
            self.upload = self.upload.evolve(event)  # type: ignore[arg-type]

    async def _reload(self) -> None:
        """Load the upload after an append whose result is unknown.

        Raises StaleAttempt if the attempt is over, Unavailable.
        """
        self._log.forget(self.upload.id)
        upload = await self._log.upload(self.upload.id)
        self._is_in_doubt = False
        if (upload.attempt, upload.worker) != (self.number, self.worker):
            raise StaleAttempt(f"attempt {self.number} is over: the upload is {upload.state}")
        self.upload = upload

    async def _has_completed(self) -> bool:
        """Return whether this attempt has completed the upload, by an append without a result.

        Only this attempt can have completed it while its number is the last.
        """
        while True:
            try:
                self._log.forget(self.upload.id)
                upload = await self._log.upload(self.upload.id)
            except Unavailable:
                await asyncio.sleep(LOG_RETRY_INTERVAL)
                continue
            return upload.attempt == self.number and upload.state is UploadState.COMPLETED


def _ending_events(
    upload: Upload, outcome: PipelineOutcome, duration: float, random: float, at: datetime, by: str
) -> tuple[Event, ...]:
    number = upload.attempt
    match outcome:
        case PipelinePassed(results, artifacts):
            return upload.succeed_attempt(
                number, results=results, artifacts=artifacts, duration=duration, at=at, by=by
            )
        case PipelineFailed(failure):
            return upload.fail_attempt(
                number, failure, duration=duration, random=random, at=at, by=by
            )
        case PipelineQuarantined(failure):
            return upload.quarantine(number, failure, duration=duration, at=at, by=by)
