"""Deliveries planned from events, in log order, and the payloads of deliveries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.errors import NotFound, Unavailable
from application.ports.event_log import EventLog
from application.ports.read_model import Queries
from application.ports.webhooks import Delivery, PlannedDelivery, StreamBatch
from application.public_addresses import masked
from application.views import BatchView, UploadView, batch_at, show_activity_then, upload_at
from domain.event import UnknownEvent, event_fields, topic_of
from domain.ids import is_partial_upload
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WEBHOOK_EVENTS, WebhookTestRequested

_CHANGES = frozenset(topic_of(event) for event in WEBHOOK_EVENTS)


Origins: TypeAlias = Mapping[UUID, StreamBatch]
"""By stream, of a batch or an upload."""


class WebhookIndex:
    """Webhooks as of a log position, by owner, without removed ones."""

    def __init__(self, webhooks: Iterable[Webhook] = ()) -> None:
        self._owners: dict[str, dict[UUID, Webhook]] = {}
        self._owner_of: dict[UUID, str] = {}
        for webhook in webhooks:
            self._put(webhook)

    def topics(self) -> list[str]:
        """Return the topics to read: changes of webhooks, and every topic that one selected."""
        chosen = {
            topic
            for owned in self._owners.values()
            for webhook in owned.values()
            for topic in webhook.subscription.events
        }
        return sorted(_CHANGES | chosen)

    def filters_by_label(self) -> bool:
        """Return whether any webhook filters by label."""
        return any(
            webhook.subscription.label is not None
            for owned in self._owners.values()
            for webhook in owned.values()
        )

    def apply(self, change: RecordedEvent) -> Webhook:
        """Apply an event of a webhook; return the webhook after it."""
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

    def match(self, events: Iterable[RecordedEvent], origins: Origins) -> list[PlannedDelivery]:
        """Plan the deliveries of these events; partial uploads have none."""
        return [
            PlannedDelivery(
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
            for label in (origin.label_at(recorded.position),)
            for webhook in self._owners.get(origin.owner, {}).values()
            if webhook.subscription.matches(topic, label, named=_names(origin, webhook))
        ]

    def _put(self, webhook: Webhook) -> None:
        self._owners.setdefault(webhook.owner, {})[webhook.id] = webhook
        self._owner_of[webhook.id] = webhook.owner


def split_at_webhook_change(
    events: Sequence[RecordedEvent],
) -> tuple[Sequence[RecordedEvent], RecordedEvent | None]:
    """The events before the first change of a webhook, and that change.

    The events after it must be read again: the change may select other topics.
    """
    for place, recorded in enumerate(events):
        if isinstance(recorded.event, WEBHOOK_EVENTS):
            return events[:place], recorded
    return events, None


def plan_test_delivery(change: RecordedEvent) -> PlannedDelivery | None:
    """Return the delivery of a test event, or None."""
    if not isinstance(change.event, WebhookTestRequested):
        return None
    webhook = change.stream
    topic = topic_of(change.event)
    return PlannedDelivery(webhook, change.position, webhook, webhook, change.version, topic)


def stream_ids(events: Iterable[RecordedEvent]) -> set[UUID]:
    """Return the ids of the batches and uploads of these events."""
    return {recorded.stream for recorded in events if not is_partial_upload(recorded.stream)}


def _names(origin: StreamBatch, webhook: Webhook) -> bool:
    return origin.notify in (str(webhook.id), webhook.subscription.url)


# A payload is not stored while its delivery waits: it is rebuilt from the log, so that data erased
# meanwhile is not sent.

# Fields of an event that stand beside it, or are internal.
_HIDDEN = frozenset({"type", "at", "blob"})

_encode = msgspec.json.Encoder().encode


class PayloadBuilder:
    """Builds payloads. `public_url` is that of the API, or empty: links are then paths."""

    def __init__(self, log: EventLog, queries: Queries, public_url: str) -> None:
        self._log = log
        self._queries = queries
        self._public_url = public_url

    async def body(self, delivery: Delivery) -> bytes:
        """`{type, timestamp, data}`, as JSON.

        `data` has the event's own fields, and the batch or upload as they stood right after it.
        Raises NotFound where there is no such event, Unavailable.
        """
        recorded = await self._event(delivery)
        fields: dict[str, Any] = event_fields(recorded.event)
        own = {name: value for name, value in fields.items() if name not in _HIDDEN}
        if own.get("notify"):  # another receiver must not learn this one's address
            own["notify"] = masked(own["notify"])
        data = {"position": delivery.position, "event": own, **await self._subject(delivery)}
        return _encode({"type": delivery.type, "timestamp": fields["at"], "data": data})

    async def _event(self, delivery: Delivery) -> RecordedEvent:
        events = await self._log.read(delivery.position - 1, limit=1)
        if not events or events[0].position != delivery.position:
            raise NotFound(f"no event at position {delivery.position}")
        assert topic_of(events[0].event) == delivery.type
        if isinstance(events[0].event, UnknownEvent):
            # A process of the later version delivers it, with the fields that are encrypted.
            raise Unavailable(f"this version does not know events of type {delivery.type}")
        return events[0]

    async def _subject(self, delivery: Delivery) -> dict[str, Any]:
        """Return the batch or upload of the event, with links."""
        batch = f"{self._public_url}/v1/batches/{delivery.lane}"
        links = {"batch": batch, "report": f"{batch}/report.json"}
        if delivery.is_test:
            return {"webhook": delivery.webhook}
        if delivery.stream == delivery.lane:
            return {"batch": await self._batch(delivery), "links": links}
        upload: dict[str, Any] = msgspec.to_builtins(await self._upload(delivery))
        del upload["blob"]
        links["upload"] = f"{self._public_url}/v1/uploads/{delivery.stream}"
        return {"upload": upload, "links": links}

    async def _batch(self, delivery: Delivery) -> BatchView:
        """Return the row if it has the version of the event, else the batch folded from the log."""
        try:
            row = await self._queries.batch(delivery.stream, owner=None)
        except NotFound:  # it is projected a moment later
            row = None
        if row is not None and row.version == delivery.version:
            return show_activity_then(row, row.updated_at)
        return await batch_at(self._log, delivery.stream, delivery.position, owner=None)

    async def _upload(self, delivery: Delivery) -> UploadView:
        """Return the upload, as `_batch` does."""
        try:
            row = await self._queries.upload(delivery.stream, owner=None)
        except NotFound:
            row = None
        if row is not None and row.version == delivery.version:
            return row
        return await upload_at(self._log, delivery.stream, delivery.position, owner=None)
