"""The orchestrator: one leader that loads, plans and stores round after round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import msgspec
import structlog

from application.append import AppendResult, RecordedEvent
from application.orchestrator import BatchToCount, RoundInputs, RoundPlan, plan_round
from application.ports.event_log import EventLog, Wakeups
from application.ports.leadership import Leadership
from application.ports.orchestration import BatchSelection, Round, Rounds
from application.tracked_batches import TrackingChanges, apply_events, streams_of
from infrastructure.jobs.selection import MAX_ROUND_UPLOADS
from infrastructure.settings import Settings

MAX_ROUND_EVENTS = 1000
CHECK_INTERVAL = 1.0  # seconds between two checks for dead workers and lost uploads
MIN_ROUND_INTERVAL = 0.05  # seconds in which events gather; longer after a long round
MAX_ROUND_INTERVAL = 0.2

_log = structlog.get_logger(__name__)


class Orchestrator:
    """Moves every batch and upload on, exactly once for each event; one is active at a time.

    Any number of processes may run one. The others stand by, and one of them takes over within
    about a second when the session of the leader ends. `now` gives the time, in UTC.
    """

    def __init__(
        self,
        leadership: Leadership[Rounds],
        log: EventLog,
        wakeups: Wakeups,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self._leadership = leadership
        self._reader = log
        self._wakeups = wakeups
        self._settings = settings
        self._now = now
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
            await self._leadership(self._lead)
        finally:
            self._is_leader = False

    async def _lead(self, rounds: Rounds) -> None:
        self._position = await rounds.load_position()
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
                rounds,
                self._settings,
                position=self._position,
                events=events,
                check=check,
                at=self._now(),
                suspects=suspects,
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
    rounds: Rounds,
    settings: Settings,
    *,
    position: int,
    events: Sequence[RecordedEvent],
    check: bool,
    at: datetime,
    suspects: Mapping[UUID, int] | None = None,
) -> RoundResult:
    """Store in one transaction the events after `position` and everything that follows from them.

    With `check`, dead workers, lost uploads and idle batches are looked for as well. The plan is
    computed before the lock of the log is taken. Raises LeadershipLost, MissedEvent, and what the
    session of the leader raises.
    """
    async with rounds.begin(position) as round:
        changes = await _apply_events(round, events)
        through = events[-1].position if events else position
        selected = await round.save_and_select(changes, through=through, at=at)
        inputs = RoundInputs(
            through=through,
            workers=selected.workers,
            to_cancel=selected.to_cancel,
            to_retry=await round.next_failed_uploads() if selected.has_batch_retries else {},
            lost=await round.find_lost() if check or changes.resumed else None,
            idle=await round.find_idle(at) if check else (),
            retries=[changes.uploads[id] for id in sorted(changes.retries)],
            ready=selected.ready,
            to_count=await _count(round, selected.to_count),
            suspects=suspects or {},
            is_resumed=changes.resumed,
            max_losses=settings.max_worker_losses,
            max_job_uploads=settings.uploads_per_job,
        )
        plan = plan_round(inputs, at)
        count_due = await _carry_out(round, plan)
    has_more = len(plan.decisions) >= MAX_ROUND_UPLOADS
    return RoundResult(through, has_more, count_due, plan.suspects)


async def _apply_events(round: Round, events: Sequence[RecordedEvent]) -> TrackingChanges:
    if not events:
        return TrackingChanges()
    return apply_events(events, *await round.load(*streams_of(events)))


async def _count(round: Round, selected: Sequence[BatchSelection]) -> list[BatchToCount]:
    counts = await round.count_uploads([one.tracked.batch.id for one in selected])
    return [
        BatchToCount(one.tracked, counts[one.tracked.batch.id], one.is_due, one.is_retrying)
        for one in selected
    ]


async def _carry_out(round: Round, plan: RoundPlan) -> datetime | None:
    """Append the decisions, store what follows from those accepted, and return the next count."""
    results: Sequence[object] = ()
    if plan.decisions:
        results = await round.append([decision.append for decision in plan.decisions])
    accepted = [isinstance(result, AppendResult) for result in results]
    return await round.save(plan.consequences(accepted))
