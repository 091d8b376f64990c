"""Commands to a webhook: add, change, rotate its secret, test, disable, enable, remove."""

from __future__ import annotations

from application.envelope import Append, Write
from application.handlers.deciding import Context, Decided, decide_webhook
from application.ports.event_log import EventLog
from application.webhooks.commands import (
    AddWebhook,
    ChangeWebhook,
    DisableWebhook,
    EnableWebhook,
    RemoveWebhook,
    RequestTest,
    RotateSecret,
)
from domain.webhook.aggregate import Webhook


async def add_webhook(log: EventLog, command: AddWebhook, context: Context) -> Decided[Webhook]:
    """Raises Faulty, Conflict for an id that is taken, Unavailable."""
    (added,) = Webhook.add(
        command.owner, command.subscription, command.secret, at=context.at, by=context.by
    )
    appended = await log.append(
        Append((Write(command.id, 0, (added,)),), cause=context.cause, answer=context.answer)
    )
    return Decided(Webhook.begin(command.id, added), appended.position)


async def change_webhook(
    log: EventLog, command: ChangeWebhook, context: Context
) -> Decided[Webhook]:
    """Raises Faulty, and like every handler below what `decide_webhook` raises."""
    return await decide_webhook(
        log,
        command.webhook,
        lambda webhook: webhook.change(command.subscription, at=context.at, by=context.by),
        context,
    )


async def rotate_secret(log: EventLog, command: RotateSecret, context: Context) -> Decided[Webhook]:
    return await decide_webhook(
        log,
        command.webhook,
        lambda webhook: webhook.rotate(command.secret, at=context.at, by=context.by),
        context,
    )


async def request_test(log: EventLog, command: RequestTest, context: Context) -> Decided[Webhook]:
    return await decide_webhook(
        log,
        command.webhook,
        lambda webhook: webhook.request_test(at=context.at, by=context.by),
        context,
    )


async def disable_webhook(
    log: EventLog, command: DisableWebhook, context: Context
) -> Decided[Webhook]:
    return await decide_webhook(
        log,
        command.webhook,
        lambda webhook: webhook.disable(command.reason, at=context.at, by=context.by),
        context,
    )


async def enable_webhook(
    log: EventLog, command: EnableWebhook, context: Context
) -> Decided[Webhook]:
    return await decide_webhook(
        log,
        command.webhook,
        lambda webhook: webhook.enable(at=context.at, by=context.by),
        context,
    )


async def remove_webhook(
    log: EventLog, command: RemoveWebhook, context: Context
) -> Decided[Webhook]:
    return await decide_webhook(
        log,
        command.webhook,
        lambda webhook: webhook.remove(at=context.at, by=context.by),
        context,
    )
