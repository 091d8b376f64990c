"""One round of the orchestrator: what was read, what follows, and where it stands, together."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import msgspec
from msgspec.structs import replace

from application.append import Append, AppendResult, RecordedEvent, append_to_stream
from application.errors import ApplicationError
from application.orchestrator.deciding import (
    abandon,
    call_off,
    expire,
    release,
    settle,
    try_again,
)
from application.orchestrator.dispatching import into_jobs, retries
from application.orchestrator.following import Changes, follow, streams_of
from application.orchestrator.members import Followed, Member
from application.orchestrator.suspecting import Suspects
from domain.event import Event
from domain.upload.state import UploadState
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.writing import write_group
from infrastructure.jobs import ending, retrying, rows, selection
from infrastructure.jobs.leadership import require_position
from infrastructure.jobs.looking import Look, look
from infrastructure.jobs.queue import Dispatch
from infrastructure.postgres.pool import Connection
from infrastructure.settings import Settings


class Step(msgspec.Struct, frozen=True):
    """Events for one upload or one batch, and whether the upload then needs a job."""

    subject: Member | Followed
    events: tuple[Event, ...]
    needs_job: bool = False

    @property
    def append(self) -> Append:
        subject = self.subject
        stream = subject.upload if isinstance(subject, Member) else subject.batch
        return append_to_stream(stream, subject.version, *self.events, owner=subject.owner)


class Plan(msgspec.Struct):
    """What the round is going to do, once all of it is known.

    `steps` are recorded as far as the log allows; `stranded` uploads get a new job as they are;
    `clean` batches have been counted; those that are `retrying` have yet to be, and those that
    are `expiring` are not. `workers` is how many there are to share the work.
    """

    workers: int
    steps: list[Step] = []
    stranded: dict[UUID, Member] = {}
    clean: list[Followed] = []
    retrying: set[UUID] = set()
    expiring: set[UUID] = set()


class Done(msgspec.Struct, frozen=True):
    """Where the round ended, and whether it left more to do than it could take on.

    `count_due` is when the next count of some batch is.
    """

    position: int
    more: bool
    count_due: datetime | None


async def run_round(
    connection: Connection,
    dispatch: Dispatch,
    settings: Settings,
    *,
    position: int,
    events: Sequence[RecordedEvent],
    check: bool,
    at: datetime,
    suspects: Suspects | None = None,
    codec: Codec = CODEC,
) -> Done:
    """One transaction: the events after `position`, and everything that follows from them.

    With `check`, workers that are dead and uploads that were lost are looked for as well; given
    `suspects`, only who was one at their last look is lost. The lock of the log is taken last.
    Raises LeadershipLost, OutOfStep, psycopg.Error.
    """
    async with connection.transaction():
        await require_position(connection, position)
        changes = await _follow(connection, events)
        through = events[-1].position if events else position
        seen = await look(connection, changes, settings, through=through, at=at)
        plan = Plan(workers=await selection.count_workers(seen.workers))
        await _call_off(seen, plan, at)
        await _retry_failed(connection, seen, plan, at)
        if check or changes.resumed:
            sure = None if changes.resumed else suspects
            await _find_lost(connection, plan, settings, at, sure)
        if check:
            await _expire(connection, plan, settings, at)
        _try_again(plan, changes)
        await _release(seen, plan, at)
        await _settle(connection, seen, plan, through, at)
        due = await _carry_out(connection, dispatch, plan, settings, codec)
    return Done(through, len(plan.steps) >= selection.CHUNK, due)


async def _follow(connection: Connection, events: Sequence[RecordedEvent]) -> Changes:
    if not events:
        return Changes()
    return follow(events, *await rows.load(connection, *streams_of(events)))


async def _call_off(seen: Look, plan: Plan, at: datetime) -> None:
    for member, outcome, reason in await ending.called_off(seen.called_off):
        plan.steps.append(Step(member, call_off(member, outcome, reason, at=at)))


async def _retry_failed(connection: Connection, seen: Look, plan: Plan, at: datetime) -> None:
    """The next failed uploads of batches that are retried; each is met once per request."""
    for batch, failed in (await retrying.go_on(connection, seen.pending)).items():
        plan.retrying.add(batch)
        plan.steps.extend(Step(member, try_again(member, at=at)) for member in failed)


async def _expire(connection: Connection, plan: Plan, settings: Settings, at: datetime) -> None:
    before = at - timedelta(seconds=settings.batch_expiry)
    for batch in await ending.idle(connection, before):
        plan.steps.append(Step(batch, expire(batch, at=at)))
        plan.expiring.add(batch.batch)


async def _find_lost(
    connection: Connection,
    plan: Plan,
    settings: Settings,
    at: datetime,
    suspects: Suspects | None,
) -> None:
    """A worker that is gone held jobs; an upload in flight that no job carries gets another."""
    await selection.bury_dead_workers(connection, settings.worker_dead_after)
    found = await selection.lost(connection)
    for member in found if suspects is None else suspects.confirmed(found):
        if member.state is UploadState.PROCESSING:
            events = abandon(member, max_losses=settings.max_worker_losses, at=at)
            plan.steps.append(Step(member, events, needs_job=len(events) == 1))
        else:
            plan.stranded[member.upload] = member


def _try_again(plan: Plan, changes: Changes) -> None:
    """What failed just now and may be tried again, unless its batch was called off meanwhile."""
    called = {step.subject.upload for step in plan.steps if isinstance(step.subject, Member)}
    for upload in changes.retries - called:
        plan.stranded[upload] = changes.members[upload]


async def _release(seen: Look, plan: Plan, at: datetime) -> None:
    for member in await selection.ready(seen.ready):
        plan.steps.append(Step(member, release(member, at=at), needs_job=True))


async def _settle(
    connection: Connection, seen: Look, plan: Plan, through: int, at: datetime
) -> None:
    looked = await selection.to_settle(seen.to_settle)
    tallies = await rows.tally(connection, looked) if looked else {}
    for id, (batch, due, pending) in looked.items():
        if id in plan.expiring:
            continue
        again = pending or id in plan.retrying
        if events := settle(batch, tallies[id], through=through, at=at, due=due, retrying=again):
            plan.steps.append(Step(batch, events))
        elif not again:
            plan.clean.append(batch.cleaned())


async def _carry_out(
    connection: Connection, dispatch: Dispatch, plan: Plan, settings: Settings, codec: Codec
) -> datetime | None:
    """Records the steps; only what the log accepted has consequences. When the next count is."""
    answers: Sequence[AppendResult | ApplicationError] = ()
    if plan.steps:
        answers = await write_group(connection, [step.append for step in plan.steps], codec)
    accepted = [
        step
        for step, answer in zip(plan.steps, answers, strict=True)
        if isinstance(answer, AppendResult)
    ]
    members, batches = _evolved(accepted, plan.expiring)
    travelling = [member for member, needs_job in members if needs_job]
    stranded = list(plan.stranded.values())
    travelling += [member for member in stranded if member.state is UploadState.QUEUED]
    waiting = [member for member in stranded if member.state is UploadState.RETRY_SCHEDULED]
    jobs = into_jobs(travelling, workers=plan.workers, most=settings.uploads_per_job)
    jobs += retries(waiting)
    carriers = await dispatch.defer(connection, jobs)
    changed = [member for member, _ in members] + stranded
    saved = [replace(m, job=carriers.get(m.upload, m.job)) for m in changed]
    async with connection.pipeline():
        await rows.save_members(connection, saved)
        await rows.save_batches(connection, [*batches, *plan.clean])
        await selection.mark_dirty(connection, {member.batch for member, _ in members})
        due = await selection.ask_next_count(connection, settings.batch_progress_interval)
    return await selection.next_count(due)


def _evolved(
    accepted: list[Step], expiring: set[UUID]
) -> tuple[list[tuple[Member, bool]], list[Followed]]:
    """The members and the batches after what the log accepted; what expires is looked at again."""
    members: list[tuple[Member, bool]] = []
    batches: list[Followed] = []
    for step in accepted:
        subject = step.subject
        for event in step.events:
            subject = subject.evolve(event)  # type: ignore[arg-type]
        if isinstance(subject, Member):
            members.append((subject, step.needs_job))
        else:
            batches.append(subject if subject.batch in expiring else subject.cleaned())
    return members, batches
