"""What clients get of webhooks and their deliveries, as JSON; a secret once, when it is made."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import msgspec

from application.ports.webhooks import Delivery, DeliveryAttempt, WebhookHealth
from domain.webhook.aggregate import Webhook


class WebhookAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook, and how it fares; `reason` says why it is disabled.

    Earlier secrets sign until `earlier_secrets_until`, if there are any. `missed` counts the
    events that were not kept because too many were waiting, from position `missed_after` on.
    """

    id: UUID
    owner: str
    url: str
    events: tuple[str, ...]
    label: str | None
    on_request: bool
    description: str
    enabled: bool
    reason: str
    added_at: datetime
    added_by: str
    changed_at: datetime
    changed_by: str
    earlier_secrets_until: datetime | None
    pending: int
    failed: int
    failing_since: datetime | None
    last_error: str
    missed: int
    missed_after: int | None
    version: int


class SecretAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook with its new secret, which is shown this once."""

    webhook: WebhookAnswer
    secret: str
    position: int


class TestRequestedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A test that is under way: its delivery has this position."""

    webhook: UUID
    position: int


class DeliveryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one event for one webhook; `id` is what the receiver knows it by.

    `next_at` is when it is tried again; a pending one without waits for its turn, or for the end
    of an earlier one of the same batch. `last` is the last request and its answer.
    """

    id: str
    webhook: UUID
    position: int
    type: str
    batch: UUID | None
    stream: UUID
    state: str
    attempts: int
    queued_at: datetime
    next_at: datetime | None
    ended_at: datetime | None
    last: DeliveryAttempt | None


class RedeliveryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How many deliveries are made again."""

    webhook: UUID
    deliveries: int


def webhook_answer(webhook: Webhook, standing: WebhookHealth, at: datetime) -> WebhookAnswer:
    """The webhook as clients see it at this moment."""
    chosen = webhook.subscription
    ends = [secret.until for secret in webhook.active_secrets(at) if secret.until is not None]
    return WebhookAnswer(
        id=webhook.id,
        owner=webhook.owner,
        url=chosen.url,
        events=chosen.events,
        label=chosen.label,
        on_request=chosen.on_request,
        description=chosen.description,
        enabled=webhook.enabled,
        reason=webhook.reason,
        added_at=webhook.added_at,
        added_by=webhook.added_by,
        changed_at=webhook.changed_at,
        changed_by=webhook.changed_by,
        earlier_secrets_until=max(ends, default=None),
        version=webhook.version,
        **msgspec.structs.asdict(standing),
    )


def delivery_answer(delivery: Delivery) -> DeliveryAnswer:
    return DeliveryAnswer(
        id=delivery.id,
        webhook=delivery.webhook,
        position=delivery.position,
        type=delivery.type,
        batch=None if delivery.is_test else delivery.lane,
        stream=delivery.stream,
        state=delivery.state,
        attempts=delivery.attempts,
        queued_at=delivery.queued_at,
        next_at=delivery.next_at,
        ended_at=delivery.ended_at,
        last=delivery.last,
    )
