"""Aggregates that this process knows, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast
from uuid import UUID

import msgspec

from application.append import StreamAppend
from domain.catalogue import DomainEvent
from domain.errors import CommandRejected
from infrastructure.event_store.folding import Aggregate, MixedStream, apply_event


class Known(msgspec.Struct):
    """An aggregate, when it was last known to be current, and how far its snapshot reaches.

    `at` is in seconds of the event loop's clock, `snapshot` a version. An aggregate is not
    `is_complete` if events of unknown types were skipped: a snapshot of it would hide them from
    the version that knows them.
    """

    aggregate: Aggregate
    at: float
    snapshot: int
    is_complete: bool = True


class Remembered:
    """A bounded memory of aggregates."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: OrderedDict[UUID, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, id: UUID) -> Known | None:
        known = self._known.get(id)
        if known is not None:
            self._known.move_to_end(id)
        return known

    def put(self, known: Known) -> None:
        """Keeps the newer of this and what is remembered."""
        id = known.aggregate.id
        before = self._known.get(id)
        if before is not None and before.aggregate.version > known.aggregate.version:
            return
        self._known[id] = known
        self._known.move_to_end(id)
        if len(self._known) > self._size:
            self._known.popitem(last=False)

    def forget(self, id: UUID) -> None:
        self._known.pop(id, None)

    def recorded(self, write: StreamAppend, version: int, at: float) -> None:
        """Moves an aggregate on by events of our own that brought its stream to `version`."""
        known = self._known.get(write.stream)
        before = version - len(write.events)
        if known is None and before > 0:
            return
        if known is not None and known.aggregate.version != before:
            self.forget(write.stream)
            return
        try:
            aggregate = _after(write, known.aggregate if known else None)
        except (CommandRejected, MixedStream):
            # The events are recorded, and that is what the writer is told; whoever loads the
            # stream next hears what is wrong with it.
            self.forget(write.stream)
            return
        if aggregate is not None:
            self.put(
                Known(
                    aggregate,
                    at,
                    known.snapshot if known else 0,
                    known.is_complete if known else True,
                )
            )


def _after(write: StreamAppend, aggregate: Aggregate | None) -> Aggregate | None:
    for event in write.events:
        aggregate = apply_event(write.stream, aggregate, cast("DomainEvent", event))
    return aggregate
