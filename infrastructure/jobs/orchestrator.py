"""The orchestrator on PostgreSQL: one leader that loads, plans and stores round after round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import NamedTuple
from uuid import UUID

import msgspec
import structlog

from application.append import AppendResult, RecordedEvent
from application.orchestrator import (
    BatchToCount,
    RoundInputs,
    RoundPlan,
    UploadToCancel,
    plan_round,
)
from application.ports.event_log import EventLog, Wakeups
from application.tracked_batches import (
    TrackedBatch,
    TrackedUpload,
    TrackingChanges,
    apply_events,
    streams_of,
)
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.writer import append_group
from infrastructure.jobs import selection, tables
from infrastructure.jobs.queue import JobQueue
from infrastructure.jobs.selection import MAX_ROUND_UPLOADS, BatchSelection, PipelinedQuery
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import LEADER_TIMEOUTS, ORCHESTRATOR_LOCK, run_as_leader
from infrastructure.settings import Settings

POLL_INTERVAL = 0.5  # seconds between two attempts of a standby to become the leader
MAX_ROUND_EVENTS = 1000
CHECK_INTERVAL = 1.0  # seconds between two checks for dead workers and lost uploads
MIN_ROUND_INTERVAL = 0.05  # seconds in which events gather; longer after a long round
MAX_ROUND_INTERVAL = 0.2

# Rows are found by index, also in a table that grew since it was last analyzed.
SESSION_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        **LEADER_TIMEOUTS,
        "enable_seqscan": "off",
        "lock_timeout": "10s",
        "client_connection_check_interval": "1s",
    }
)

_log = structlog.get_logger(__name__)


class Orchestrator:
    """Moves every batch and upload on, exactly once for each event; one is active at a time.

    Any number of processes may run one. The others stand by, and one of them takes over within
    about a second when the session of the leader ends. `now` gives the time, in UTC.
    """

    def __init__(
        self,
        url: str,
        log: EventLog,
        wakeups: Wakeups,
        settings: Settings,
        now: Callable[[], datetime],
        codec: Codec = CODEC,
    ) -> None:
        self._url = url
        self._codec = codec
        self._reader = log
        self._wakeups = wakeups
        self._settings = settings
        self._now = now
        self._queue = JobQueue()
        self._position = 0
        self._is_leader = False

    @property
    def is_leader(self) -> bool:
        """True if this one is the active orchestrator."""
        return self._is_leader

    @property
    def position(self) -> int:
        """Position up to which the leader has followed the log; meaningless while standing by."""
        return self._position

    async def run(self) -> None:
        """Stand by until this one leads, and lead until cancelled.

        Raises what interrupts it, LeadershipLost, psycopg.Error or Unavailable as a rule: it goes
        on from the saved position when it is run again.
        """
        try:
            await run_as_leader(
                self._url,
                ORCHESTRATOR_LOCK,
                self._lead,
                name="orchestrator",
                settings=SESSION_SETTINGS,
                poll_interval=POLL_INTERVAL,
            )
        finally:
            self._is_leader = False

    async def _lead(self, connection: Connection) -> None:
        self._position = await tables.load_position(connection)
        self._is_leader = True
        _log.info("orchestrator_leads", position=self._position)
        checked_at = -CHECK_INTERVAL
        suspects: Mapping[UUID, int] = {}
        while True:
            events = await self._reader.read(self._position, limit=MAX_ROUND_EVENTS)
            is_behind = len(events) == MAX_ROUND_EVENTS
            now = asyncio.get_running_loop().time()
            check = not is_behind and now - checked_at >= CHECK_INTERVAL
            result = await run_round(
                connection,
                self._queue,
                self._settings,
                position=self._position,
                events=events,
                check=check,
                at=self._now(),
                suspects=suspects,
                codec=self._codec,
            )
            self._position, suspects = result.position, result.suspects
            checked_at = now if check else checked_at
            if not is_behind:
                await self._wait(result, asyncio.get_running_loop().time() - now)

    async def _wait(self, result: RoundResult, duration: float) -> None:
        """Wait until an event is recorded, a count is due, or a check is.

        After a round of long `duration` the wait is longer, so that more events share the cost
        of the next.
        """
        if result.has_more:
            return
        await asyncio.sleep(min(max(MIN_ROUND_INTERVAL, duration), MAX_ROUND_INTERVAL))
        timeout = CHECK_INTERVAL
        if result.count_due is not None:
            timeout = min(timeout, (result.count_due - self._now()).total_seconds())
        if timeout > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._wakeups.wait(result.position)


class RoundResult(msgspec.Struct, frozen=True):
    """Position after a round, whether more is left than a round takes, and the next count.

    `suspects` are uploads that the last check found without a job, each with its version.
    """

    position: int
    has_more: bool
    count_due: datetime | None
    suspects: Mapping[UUID, int]


async def run_round(
    connection: Connection,
    queue: JobQueue,
    settings: Settings,
    *,
    position: int,
    events: Sequence[RecordedEvent],
    check: bool,
    at: datetime,
    suspects: Mapping[UUID, int] | None = None,
    codec: Codec = CODEC,
) -> RoundResult:
    """Store in one transaction the events after `position` and everything that follows from them.

    With `check`, dead workers, lost uploads and idle batches are looked for as well. The plan is
    computed before the lock of the log is taken. Raises LeadershipLost, MissedEvent, psycopg.Error.
    """
    async with connection.transaction():
        await tables.require_position(connection, position)
        changes = await _apply_events(connection, events)
        through = events[-1].position if events else position
        queries = await _save_and_query(connection, changes, settings, through=through, at=at)
        inputs = RoundInputs(
            through=through,
            workers=await queries.workers.fetch(),
            to_cancel=await queries.to_cancel.fetch(),
            to_retry=await _next_failed_uploads(connection, queries),
            lost=await _find_lost(connection, settings) if check or changes.resumed else None,
            idle=await _find_idle(connection, settings, at) if check else (),
            retries=[changes.uploads[id] for id in sorted(changes.retries)],
            ready=await queries.ready.fetch(),
            to_count=await _count(connection, queries),
            suspects=suspects or {},
            is_resumed=changes.resumed,
            max_losses=settings.max_worker_losses,
            max_job_uploads=settings.uploads_per_job,
        )
        plan = plan_round(inputs, at)
        count_due = await _carry_out(connection, queue, plan, settings, codec)
    has_more = len(plan.decisions) >= MAX_ROUND_UPLOADS
    return RoundResult(through, has_more, count_due, plan.suspects)


class _RoundQueries(NamedTuple):
    """Queries of a round that are executed in one exchange with the server."""

    to_cancel: PipelinedQuery[list[UploadToCancel]]
    has_batch_retries: PipelinedQuery[bool]
    ready: PipelinedQuery[list[TrackedUpload]]
    to_count: PipelinedQuery[list[BatchSelection]]
    workers: PipelinedQuery[int]


async def _apply_events(connection: Connection, events: Sequence[RecordedEvent]) -> TrackingChanges:
    if not events:
        return TrackingChanges()
    return apply_events(events, *await tables.load(connection, *streams_of(events)))


async def _save_and_query(
    connection: Connection,
    changes: TrackingChanges,
    settings: Settings,
    *,
    through: int,
    at: datetime,
) -> _RoundQueries:
    """Save what the events up to position `through` have changed, and query what follows."""
    async with connection.pipeline():
        await tables.save_batches(connection, changes.batches.values())
        await tables.save_uploads(connection, changes.uploads.values())
        await selection.start_batch_retries(connection, changes.batch_retries)
        await tables.save_position(connection, through)
        return _RoundQueries(
            to_cancel=await selection.select_to_cancel(connection),
            has_batch_retries=await selection.has_batch_retries(connection),
            ready=await selection.select_ready(connection, settings),
            to_count=await selection.select_to_count(
                connection, settings.batch_progress_interval, at
            ),
            workers=await selection.count_workers(connection),
        )


async def _next_failed_uploads(
    connection: Connection, queries: _RoundQueries
) -> Mapping[UUID, list[TrackedUpload]]:
    if not await queries.has_batch_retries.fetch():
        return {}
    return await selection.next_failed_uploads(connection)


async def _find_lost(connection: Connection, settings: Settings) -> list[TrackedUpload]:
    """Return the uploads without a job, after the jobs of dead workers are gone."""
    await selection.prune_stalled_workers(connection, settings.worker_dead_after)
    return await selection.select_lost(connection)


async def _find_idle(
    connection: Connection, settings: Settings, at: datetime
) -> list[TrackedBatch]:
    return await selection.select_idle(connection, at - timedelta(seconds=settings.batch_expiry))


async def _count(connection: Connection, queries: _RoundQueries) -> list[BatchToCount]:
    selected = await queries.to_count.fetch()
    counts = await tables.count_uploads(connection, [one.tracked.batch.id for one in selected])
    return [
        BatchToCount(one.tracked, counts[one.tracked.batch.id], one.is_due, one.is_retrying)
        for one in selected
    ]


async def _carry_out(
    connection: Connection, queue: JobQueue, plan: RoundPlan, settings: Settings, codec: Codec
) -> datetime | None:
    """Append the decisions, store what follows from those accepted, and return the next count."""
    results: Sequence[object] = ()
    if plan.decisions:
        appends = [decision.append for decision in plan.decisions]
        results = await append_group(connection, appends, codec)
    accepted = [isinstance(result, AppendResult) for result in results]
    consequences = plan.consequences(accepted)
    jobs = await queue.defer(connection, consequences.jobs)
    async with connection.pipeline():
        await tables.save_uploads(connection, consequences.uploads_with_jobs(jobs))
        await tables.save_batches(connection, consequences.batches)
        await tables.mark_dirty(connection, consequences.dirty)
        due = await selection.select_next_count(connection, settings.batch_progress_interval)
    return await due.fetch()
