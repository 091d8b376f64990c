"""What clients get of webhooks and their deliveries, as JSON; a secret once, when it is made."""

from __future__ import annotations

from datetime import datetime

import msgspec

from application.ports.webhooks import Delivery, WebhookHealth
from domain.webhook.aggregate import Webhook
from interfaces.common.api_types import DeliveryAnswer, WebhookAnswer


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
