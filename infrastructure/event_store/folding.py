"""From the events of a stream to its aggregate."""

from __future__ import annotations

from typing import TypeAlias, get_args
from uuid import UUID

from application.append import DomainEvent
from domain.access.events import ErasureEvent, KeyEvent, SignInEvent
from domain.access.records import RecordedErasure, RecordedKey, RecordedSignIn
from domain.batch.aggregate import Batch
from domain.batch.events import BatchEvent
from domain.upload.aggregate import Upload
from domain.upload.events import UploadEvent
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WEBHOOK_EVENTS

Snapshotted: TypeAlias = Upload | Batch | Webhook
Aggregate: TypeAlias = Snapshotted | RecordedKey | RecordedSignIn | RecordedErasure

_BATCH_EVENTS: tuple[type[BatchEvent], ...] = get_args(BatchEvent)
_UPLOAD_EVENTS: tuple[type[UploadEvent], ...] = get_args(UploadEvent)


class MixedStream(Exception):
    """A stream holds events of more than one kind of aggregate."""


def fold(id: UUID, aggregate: Aggregate | None, event: DomainEvent) -> Aggregate:
    """The aggregate after the event; None stands for a stream that has not begun.

    Raises MixedStream, and InvalidState for a history that does not begin at its beginning.
    """
    if isinstance(event, _BATCH_EVENTS):
        if aggregate is None:
            return Batch.begin(id, event)
        if isinstance(aggregate, Batch):
            return aggregate.evolve(event)
    elif isinstance(event, _UPLOAD_EVENTS):
        if aggregate is None:
            return Upload.begin(id, event)
        if isinstance(aggregate, Upload):
            return aggregate.evolve(event)
    elif isinstance(event, WEBHOOK_EVENTS):
        if aggregate is None:
            return Webhook.begin(id, event)
        if isinstance(aggregate, Webhook):
            return aggregate.evolve(event)
    elif isinstance(event, KeyEvent):
        if aggregate is None:
            return RecordedKey.begin(id, event)
        if isinstance(aggregate, RecordedKey):
            return aggregate.evolve(event)
    elif isinstance(event, SignInEvent):
        if aggregate is None:
            return RecordedSignIn.begin(id, event)
        if isinstance(aggregate, RecordedSignIn):
            return aggregate.evolve(event)
    elif isinstance(event, ErasureEvent):
        if aggregate is None:
            return RecordedErasure.begin(id, event)
        if isinstance(aggregate, RecordedErasure):
            return aggregate.evolve(event)
    raise MixedStream(f"{type(event).__name__} in the stream of {aggregate!r}")
