"""
The life of a webhook: who added it, changed it, renewed its secret, switched it off and on.

The tags are stored and streamed: they never change, whatever the classes are called. No event
holds a secret: it names one, and only those who sign requests can look it up.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from domain.event import Event
from domain.webhook.subscription import WebhookFilter


class WebhookAdded(Event, frozen=True, kw_only=True, tag="webhook.added"):
    """An owner wants to be told, by requests signed with the secret of this id."""

    owner: str
    subscription: WebhookFilter
    secret: UUID


class WebhookChanged(Event, frozen=True, kw_only=True, tag="webhook.changed"):
    """What is told, or where, is different from now on."""

    subscription: WebhookFilter


class WebhookSecretRotated(Event, frozen=True, kw_only=True, tag="webhook.secret_rotated"):
    """A new secret signs from now on; those before it sign as well until `earlier_until`."""

    secret: UUID
    earlier_until: datetime


class WebhookTestRequested(Event, frozen=True, kw_only=True, tag="webhook.test_requested"):
    """Somebody wants to see whether requests arrive: this event itself is told, once."""


class WebhookDisabled(Event, frozen=True, kw_only=True, tag="webhook.disabled"):
    """Nothing is sent any more; what happens meanwhile waits."""

    reason: str


class WebhookEnabled(Event, frozen=True, kw_only=True, tag="webhook.enabled"):
    """What waits is sent, and what happens from now on."""


class WebhookRemoved(Event, frozen=True, kw_only=True, tag="webhook.removed"):
    """Nobody wants to be told any more, not even of what waits."""


WebhookEvent: TypeAlias = (
    WebhookAdded
    | WebhookChanged
    | WebhookSecretRotated
    | WebhookTestRequested
    | WebhookDisabled
    | WebhookEnabled
    | WebhookRemoved
)

WEBHOOK_EVENTS = (
    WebhookAdded,
    WebhookChanged,
    WebhookSecretRotated,
    WebhookTestRequested,
    WebhookDisabled,
    WebhookEnabled,
    WebhookRemoved,
)
