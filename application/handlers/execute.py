"""Execution of a command to one aggregate: load it, or begin it, decide, append."""

from __future__ import annotations

from datetime import datetime
from typing import Generic

import msgspec

from application.append import (
    NO_CAUSE,
    Append,
    AppendCondition,
    Causation,
    IdempotencyRecord,
    StreamAppend,
)
from application.commands import A, AddWebhook, AggregateCommand, DecisionFunction, UploadCommand
from application.errors import Conflict, TooManyConflicts
from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch
from domain.batch.events import COMPLETING
from domain.errors import CommandRejected
from domain.event import Event
from domain.upload.aggregate import Upload
from domain.webhook.aggregate import Webhook

MAX_ATTEMPTS = 8
"""Attempts to append before a command fails with TooManyConflicts."""


class CommandContext(msgspec.Struct, frozen=True):
    """Context of a command: principal, time, cause, and the idempotency record to store."""

    by: str
    at: datetime
    cause: Causation = NO_CAUSE
    idempotency: IdempotencyRecord | None = None


class CommandResult(msgspec.Struct, Generic[A], frozen=True):
    """The aggregate after the command, and the position of its last event.

    `position` is 0 if nothing had to be recorded.
    """

    aggregate: A
    position: int


async def execute(
    log: EventLog, command: AggregateCommand[A], context: CommandContext
) -> CommandResult[A]:
    """Carry a command out, and return the aggregate after it.

    Raises NotFound, CommandRejected, AlreadyHandled, IdempotencyKeyReused, TooManyConflicts,
    Unavailable, OutcomeUnknown.
    """
    for attempt in range(MAX_ATTEMPTS):
        fresh = attempt > 0 or not command.accepts_cached
        if fresh:
            log.forget(command.id)
        aggregate = await command.load(log)
        try:
            events = command.decision(aggregate, at=context.at, by=context.by)
        except CommandRejected:
            # A cached aggregate may be out of date: refuse only by the log's current state.
            if fresh:
                raise
            continue
        if not events:
            return CommandResult(aggregate, 0)
        write = StreamAppend(command.id, aggregate.version, events, aggregate.owner)
        append = Append((write,), cause=context.cause, idempotency=context.idempotency)
        if isinstance(command, UploadCommand) and command.reopen is not None:
            append = await _with_reopening(log, command.reopen, aggregate, append, context)
        try:
            appended = await log.append(append)
        except Conflict:
            continue
        return CommandResult(_evolve(aggregate, events), appended.position)
    raise TooManyConflicts(f"{command.id} is changing too fast; try again")


async def _with_reopening(
    log: EventLog,
    reopen: DecisionFunction[Batch],
    upload: Upload,
    append: Append,
    context: CommandContext,
) -> Append:
    """Add the end of the verdict on the upload's batch to the append.

    If the orchestrator reopened the batch later instead, a read in between would return the
    outdated verdict.
    """
    log.forget(upload.batch)
    batch = await log.batch(upload.batch)
    if reopened := reopen(batch, at=context.at, by=context.by):
        write = StreamAppend(batch.id, batch.version, reopened, batch.owner)
        return msgspec.structs.replace(append, writes=(*append.writes, write))
    # The batch must not have completed meanwhile; that it made progress does not matter.
    condition = AppendCondition(batch.id, batch.version, COMPLETING)
    return msgspec.structs.replace(append, conditions=(condition,))


def _evolve(aggregate: A, events: tuple[Event, ...]) -> A:
    for event in events:
        aggregate = aggregate.evolve(event)  # type: ignore[arg-type]
    return aggregate


async def add_webhook(
    log: EventLog, command: AddWebhook, context: CommandContext
) -> CommandResult[Webhook]:
    """Add a webhook. Raises ValidationFailed, Conflict for an id that is taken, Unavailable."""
    (added,) = Webhook.add(
        command.owner, command.subscription, command.secret, at=context.at, by=context.by
    )
    write = StreamAppend(command.id, 0, (added,))
    append = Append((write,), cause=context.cause, idempotency=context.idempotency)
    appended = await log.append(append)
    return CommandResult(Webhook.begin(command.id, added), appended.position)
