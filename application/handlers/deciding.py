"""Load, decide, append; and again where somebody else was faster."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID

import msgspec

from application.envelope import NO_CAUSE, Answer, Append, Cause, Write
from application.errors import Busy, Conflict
from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch
from domain.errors import Refused
from domain.event import Event
from domain.upload.aggregate import Upload
from domain.webhook.aggregate import Webhook

TRIES = 8

A = TypeVar("A", Batch, Upload, Webhook)


class Context(msgspec.Struct, frozen=True):
    """Who commands, when, and why; `answer` is kept where the command came with a key."""

    by: str
    at: datetime
    cause: Cause = NO_CAUSE
    answer: Answer | None = None


class Decided(msgspec.Struct, Generic[A], frozen=True):
    """The aggregate after the command, and where its last event stands.

    `position` is 0 where nothing had to be recorded.
    """

    aggregate: A
    position: int


async def decide_batch(
    log: EventLog, id: UUID, decide: Callable[[Batch], tuple[Event, ...]], context: Context
) -> Decided[Batch]:
    """Raises NotFound, Refused, Busy, Unavailable."""
    return await _decide(log, log.batch, id, decide, context, fresh=True)


async def decide_upload(
    log: EventLog,
    id: UUID,
    decide: Callable[[Upload], tuple[Event, ...]],
    context: Context,
    *,
    fresh: bool = True,
) -> Decided[Upload]:
    """Likewise. Without `fresh` a remembered upload will do: the sender's own hot path."""
    return await _decide(log, log.upload, id, decide, context, fresh=fresh)


async def decide_webhook(
    log: EventLog, id: UUID, decide: Callable[[Webhook], tuple[Event, ...]], context: Context
) -> Decided[Webhook]:
    """Likewise."""
    return await _decide(log, log.webhook, id, decide, context, fresh=True)


async def _decide(
    log: EventLog,
    load: Callable[[UUID], Awaitable[A]],
    id: UUID,
    decide: Callable[[A], tuple[Event, ...]],
    context: Context,
    *,
    fresh: bool,
) -> Decided[A]:
    for attempt in range(TRIES):
        fresh = fresh or attempt > 0
        if fresh:
            log.forget(id)
        aggregate = await load(id)
        try:
            events = decide(aggregate)
        except Refused:
            # What was remembered may be out of date: refuse only on what the log says now.
            if fresh:
                raise
            continue
        if not events:
            return Decided(aggregate, 0)
        write = Write(id, aggregate.version, events, aggregate.owner)
        try:
            appended = await log.append(
                Append((write,), cause=context.cause, answer=context.answer)
            )
        except Conflict:
            continue
        return Decided(_evolved(aggregate, events), appended.position)
    raise Busy(f"{id} is changing too fast; try again")


def _evolved(aggregate: A, events: tuple[Event, ...]) -> A:
    for event in events:
        aggregate = aggregate.evolve(event)  # type: ignore[arg-type]
    return aggregate
