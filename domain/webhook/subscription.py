"""What a webhook is told, and where: the list of events it may choose from is here, once."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from domain.batch import events as batch
from domain.errors import FieldError
from domain.event import Event, topic_of
from domain.file import has_control_characters
from domain.upload import events as upload

MAX_URL = 2000
MAX_TEXT = 200

_TOLD: tuple[type[Event], ...] = (
    batch.BatchStarted,
    batch.BatchSealed,
    batch.BatchPaused,
    batch.BatchResumed,
    batch.BatchCancelled,
    batch.BatchExpired,
    batch.BatchReopened,
    batch.BatchCompleted,
    upload.UploadRejected,
    upload.FileReceived,
    upload.AttemptFailed,
    upload.UploadCompleted,
    upload.UploadFailed,
    upload.UploadQuarantined,
    upload.UploadReleased,
    upload.UploadCancelled,
    upload.UploadExpired,
)

DELIVERED_TOPICS = tuple(topic_of(event) for event in _TOLD)
"""Topics that a webhook may choose: what changes how things stand, never mere progress."""


class WebhookFilter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where to send, and what of.

    `events` are topics out of TOLD. With `label`, only batches of that label are told of; with
    `on_request`, only batches whose `notify` names this webhook, by its id or its address.
    """

    url: str
    events: tuple[str, ...]
    label: str | None = None
    on_request: bool = False
    description: str = ""

    def matches(self, topic: str, label: str, *, named: bool) -> bool:
        """Whether an event of a batch with this label is to be told.

        `named` says whether the batch asked for this very webhook.
        """
        return (
            topic in self.events and self.label in (None, label) and (named or not self.on_request)
        )


def validate_filter(subscription: WebhookFilter) -> Iterator[FieldError]:
    """Every rule this subscription breaks."""
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
        if text and (len(text) > MAX_TEXT or has_control_characters(text)):
            yield FieldError(name, f"must be at most {MAX_TEXT} printable characters")


def url_error(url: str) -> str | None:
    """What is wrong with an address that requests are to be sent to, or None."""
    if len(url) > MAX_URL or not url.isprintable() or " " in url:
        return f"must be at most {MAX_URL} printable characters without blanks"
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
