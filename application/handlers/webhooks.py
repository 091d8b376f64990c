"""The handler that adds a webhook."""

from __future__ import annotations

from application.append import Append, StreamAppend
from application.commands import AddWebhook
from application.handlers.execute import CommandContext, CommandResult
from application.ports.event_log import EventLog
from domain.webhook.aggregate import Webhook


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
