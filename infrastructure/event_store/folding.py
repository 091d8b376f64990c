"""Folding of a stream's events into its aggregate."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias
from uuid import UUID

from msgspec.structs import replace

from domain.access.events import ERASURE_EVENTS, KEY_EVENTS, SIGN_IN_EVENTS
from domain.access.records import RecordedErasure, RecordedKey, RecordedSignIn
from domain.batch.aggregate import Batch
from domain.batch.events import BATCH_EVENTS
from domain.catalogue import DomainEvent
from domain.event import UnknownEvent
from domain.upload.aggregate import Upload
from domain.upload.events import UPLOAD_EVENTS
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WEBHOOK_EVENTS

Snapshotted: TypeAlias = Upload | Batch | Webhook
Aggregate: TypeAlias = Snapshotted | RecordedKey | RecordedSignIn | RecordedErasure

_EVENTS_OF: tuple[tuple[Any, tuple[type[DomainEvent], ...]], ...] = (
    (Upload, UPLOAD_EVENTS),
    (Batch, BATCH_EVENTS),
    (Webhook, WEBHOOK_EVENTS),
    (RecordedKey, KEY_EVENTS),
    (RecordedSignIn, SIGN_IN_EVENTS),
    (RecordedErasure, ERASURE_EVENTS),
)
_AGGREGATE_OF: Mapping[type[DomainEvent], Any] = MappingProxyType(
    {event: aggregate for aggregate, events in _EVENTS_OF for event in events}
)


class MixedStream(Exception):
    """A stream holds events of more than one kind of aggregate."""


def apply_event(
    id: UUID, aggregate: Aggregate | None, event: DomainEvent | UnknownEvent
) -> Aggregate | None:
    """Return the aggregate after the event; None stands for a stream that has not begun.

    An event of an unknown type changes the version of the aggregate and nothing else. A stream
    that begins with one has no aggregate in this version of Uptrail. Raises MixedStream, and
    InvalidState for a history that lacks its beginning.
    """
    if isinstance(event, UnknownEvent):
        return None if aggregate is None else replace(aggregate, version=aggregate.version + 1)
    kind = _AGGREGATE_OF[type(event)]
    if aggregate is None:
        begun: Aggregate = kind.begin(id, event)
        return begun
    if type(aggregate) is not kind:
        raise MixedStream(f"{type(event).__name__} in the stream of {aggregate!r}")
    evolved: Aggregate = aggregate.evolve(event)  # type: ignore[arg-type]
    return evolved
