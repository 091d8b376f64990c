"""From events to deliveries: which webhooks are to be told of what, in the order of the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from domain.event import topic_of
from domain.ids import is_partial_upload
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WEBHOOK_EVENTS, WebhookTestRequested

_CHANGES = frozenset(topic_of(event) for event in WEBHOOK_EVENTS)


class Origin(msgspec.Struct, frozen=True):
    """The batch that a stream belongs to; `notify` names the webhooks it asks for, if any."""

    batch: UUID
    owner: str
    label: str
    notify: str | None


class Telling(msgspec.Struct, frozen=True):
    """An event that one webhook is to be told of, in its lane."""

    webhook: UUID
    position: int
    lane: UUID
    stream: UUID
    version: int
    type: str


Origins: TypeAlias = Mapping[UUID, Origin]
"""By stream, of a batch or an upload."""


class Roster:
    """The webhooks as of a position in the log, by owner; those that were removed are not."""

    def __init__(self, webhooks: Iterable[Webhook] = ()) -> None:
        self._owners: dict[str, dict[UUID, Webhook]] = {}
        self._owner_of: dict[UUID, str] = {}
        for webhook in webhooks:
            self._put(webhook)

    def topics(self) -> list[str]:
        """What has to be read of the log: changes of webhooks, and what any of them chose."""
        chosen = {
            topic
            for owned in self._owners.values()
            for webhook in owned.values()
            for topic in webhook.subscription.events
        }
        return sorted(_CHANGES | chosen)

    def apply(self, change: RecordedEvent) -> Webhook:
        """Takes in an event of a webhook; returns the webhook after it."""
        event = change.event
        assert isinstance(event, WEBHOOK_EVENTS)
        known = self._owners.get(self._owner_of.get(change.stream, ""), {}).get(change.stream)
        webhook = known.evolve(event) if known else Webhook.begin(change.stream, event)
        if webhook.removed:
            owned = self._owners[self._owner_of.pop(webhook.id)]
            del owned[webhook.id]
        else:
            self._put(webhook)
        return webhook

    def tell(self, events: Iterable[RecordedEvent], origins: Origins) -> list[Telling]:
        """The deliveries of these events; of a part of an upload nobody is told."""
        return [
            Telling(
                webhook.id,
                recorded.position,
                origin.batch,
                recorded.stream,
                recorded.version,
                topic,
            )
            for recorded in events
            if (origin := origins.get(recorded.stream)) is not None
            for topic in (topic_of(recorded.event),)
            for webhook in self._owners.get(origin.owner, {}).values()
            if webhook.subscription.matches(topic, origin.label, named=_names(origin, webhook))
        ]

    def _put(self, webhook: Webhook) -> None:
        self._owners.setdefault(webhook.owner, {})[webhook.id] = webhook
        self._owner_of[webhook.id] = webhook.owner


def up_to_change(
    events: Sequence[RecordedEvent],
) -> tuple[Sequence[RecordedEvent], RecordedEvent | None]:
    """The events before the first change of a webhook, and that change.

    What comes after it has to be read anew: it may be that other topics are wanted from there on.
    """
    for place, recorded in enumerate(events):
        if isinstance(recorded.event, WEBHOOK_EVENTS):
            return events[:place], recorded
    return events, None


def telling_of(change: RecordedEvent) -> Telling | None:
    """The delivery that this change asks for, if it is a test."""
    if not isinstance(change.event, WebhookTestRequested):
        return None
    webhook = change.stream
    topic = topic_of(change.event)
    return Telling(webhook, change.position, webhook, webhook, change.version, topic)


def streams_of(events: Iterable[RecordedEvent]) -> set[UUID]:
    """The batches and uploads that these events are about."""
    return {recorded.stream for recorded in events if not is_partial_upload(recorded.stream)}


def _names(origin: Origin, webhook: Webhook) -> bool:
    return origin.notify in (str(webhook.id), webhook.subscription.url)
