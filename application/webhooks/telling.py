"""What a webhook is told: the body of a delivery, which follows from the log and from nothing else.

It is not kept while it waits: made again it is the same, and what was erased meanwhile is not told.
"""

from __future__ import annotations

from typing import Any

import msgspec

from application.activity import show_activity_then
from application.append import RecordedEvent
from application.errors import NotFound, Unavailable
from application.ports.deliveries import Delivery
from application.ports.event_log import EventLog
from application.ports.read_model import Queries
from application.replay import batch_as_of, upload_as_of
from application.views import BatchView, UploadView
from application.webhooks.addresses import masked
from domain.event import UnknownEvent, event_fields, topic_of

# Of an event: what stands beside it, and where the bytes lie, which is nobody's business outside.
_HIDDEN = frozenset({"type", "at", "blob"})

_encode = msgspec.json.Encoder().encode


class Teller:
    """Makes bodies. `reach_us` is the address of our API as receivers see it, or empty."""

    def __init__(self, log: EventLog, queries: Queries, reach_us: str) -> None:
        self._log = log
        self._queries = queries
        self._reach_us = reach_us.rstrip("/")

    async def body(self, delivery: Delivery) -> bytes:
        """`{type, timestamp, data}`, as JSON.

        `data` has the event's own fields, and the batch or upload as they stood right after it.
        Raises NotFound where there is no such event, Unavailable.
        """
        recorded = await self._event(delivery)
        fields: dict[str, Any] = event_fields(recorded.event)
        own = {name: value for name, value in fields.items() if name not in _HIDDEN}
        if own.get("notify"):  # another receiver must not get the address of this one
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
        """What the event is about, with links to it."""
        batch = f"{self._reach_us}/v1/batches/{delivery.lane}"
        links = {"batch": batch, "report": f"{batch}/report.json"}
        if delivery.is_test:
            return {"webhook": delivery.webhook}
        if delivery.stream == delivery.lane:
            return {"batch": await self._batch(delivery), "links": links}
        upload: dict[str, Any] = msgspec.to_builtins(await self._upload(delivery))
        del upload["blob"]
        links["upload"] = f"{self._reach_us}/v1/uploads/{delivery.stream}"
        return {"upload": upload, "links": links}

    async def _batch(self, delivery: Delivery) -> BatchView:
        """By the row as it is now, if nothing has happened since; else folded from the log."""
        try:
            row = await self._queries.batch(delivery.stream, owner=None)
        except NotFound:  # it is projected a moment later
            row = None
        if row is not None and row.version == delivery.version:
            return show_activity_then(row, row.updated_at)
        return await batch_as_of(self._log, delivery.stream, delivery.position, owner=None)

    async def _upload(self, delivery: Delivery) -> UploadView:
        """Likewise."""
        try:
            row = await self._queries.upload(delivery.stream, owner=None)
        except NotFound:
            row = None
        if row is not None and row.version == delivery.version:
            return row
        return await upload_as_of(self._log, delivery.stream, delivery.position, owner=None)
