"""
Events of webhooks, and which events a webhook may choose.

Everything about an event is declared at its class (docs/contributing/add-an-event.md). Tags are
stored and streamed: they never change, whatever the classes are called. No event holds a secret,
only the id of one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TypeAlias, get_args
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from domain.batch.events import BATCH_EVENTS
from domain.errors import FieldError
from domain.event import Event, Public, event_type, topic_of
from domain.file import has_control_characters
from domain.upload.events import UPLOAD_EVENTS

MAX_URL_LENGTH = 2000  # characters
MAX_TEXT_LENGTH = 200  # characters

DELIVERED_TOPICS = tuple(
    topic_of(event) for event in (*BATCH_EVENTS, *UPLOAD_EVENTS) if event.declaration.delivered
)
"""Topics that a webhook may choose."""


class WebhookFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Selection of events for one URL.

    `events` are out of DELIVERED_TOPICS. With `label`, only events of batches with that label are
    delivered; with `on_request`, only those of batches whose `notify` names this webhook, by its
    id or its URL.
    """

    url: str
    events: tuple[str, ...]
    label: str | None = None
    on_request: bool = False
    description: str = ""

    def matches(self, topic: str, label: str, *, named: bool) -> bool:
        """Return whether an event of a batch with this label is delivered.

        `named` is whether the `notify` of the batch names this webhook.
        """
        return (
            topic in self.events and self.label in (None, label) and (named or not self.on_request)
        )


@event_type("Webhook added")
class WebhookAdded(Event, frozen=True, kw_only=True, tag="webhook.added"):
    """A webhook was added; its requests are signed with the secret of this id."""

    owner: Public[str]
    subscription: Public[WebhookFilter]
    secret: UUID


@event_type("Webhook changed")
class WebhookChanged(Event, frozen=True, kw_only=True, tag="webhook.changed"):
    """Events, conditions or URL of the webhook changed."""

    subscription: Public[WebhookFilter]


@event_type("Secret rotated")
class WebhookSecretRotated(Event, frozen=True, kw_only=True, tag="webhook.secret_rotated"):
    """A new secret signs requests; the earlier ones sign them too until `earlier_until`."""

    secret: UUID
    earlier_until: datetime


@event_type("Test requested")
class WebhookTestRequested(Event, frozen=True, kw_only=True, tag="webhook.test_requested"):
    """A test delivery was requested: this event itself is delivered, once."""


@event_type("Webhook disabled")
class WebhookDisabled(Event, frozen=True, kw_only=True, tag="webhook.disabled"):
    """No requests are sent until the webhook is enabled; deliveries are queued meanwhile."""

    reason: Public[str]


@event_type("Webhook enabled")
class WebhookEnabled(Event, frozen=True, kw_only=True, tag="webhook.enabled"):
    """Queued and new deliveries are sent again."""


@event_type("Webhook removed")
class WebhookRemoved(Event, frozen=True, kw_only=True, tag="webhook.removed"):
    """The webhook was removed, with its queued deliveries."""


WebhookEvent: TypeAlias = (
    WebhookAdded
    | WebhookChanged
    | WebhookSecretRotated
    | WebhookTestRequested
    | WebhookDisabled
    | WebhookEnabled
    | WebhookRemoved
)

WEBHOOK_EVENTS: tuple[type[WebhookEvent], ...] = get_args(WebhookEvent)


def validate_filter(subscription: WebhookFilter) -> Iterator[FieldError]:
    """Yield an error for every rule that the filter breaks."""
    if problem := url_error(subscription.url):
        yield FieldError("url", problem)
    if not subscription.events:
        yield FieldError("events", f"must name at least one of {', '.join(DELIVERED_TOPICS)}")
    for index, topic in enumerate(subscription.events):
        if topic not in DELIVERED_TOPICS:
            yield FieldError(f"events/{index}", f"must be one of {', '.join(DELIVERED_TOPICS)}")
        elif topic in subscription.events[:index]:
            yield FieldError(f"events/{index}", "is named twice")
    for name, text in (("label", subscription.label), ("description", subscription.description)):
        if text and (len(text) > MAX_TEXT_LENGTH or has_control_characters(text)):
            yield FieldError(name, f"must be at most {MAX_TEXT_LENGTH} printable characters")


def url_error(url: str) -> str | None:
    """Return what is wrong with the URL of a webhook, or None."""
    if len(url) > MAX_URL_LENGTH or not url.isprintable() or " " in url:
        return f"must be at most {MAX_URL_LENGTH} printable characters without blanks"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for what is no port
    except ValueError as error:
        return f"is no address: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "must look like https://example.com/hook"
    if parts.username is not None or parts.password is not None:
        return "must not hold a name or password: every request is signed instead"
    return "must not have a fragment" if parts.fragment else None
