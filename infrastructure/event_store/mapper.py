"""The meeting with the library: its tools read and fold our log through this mapper."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
from eventsourcing.domain import DomainEventProtocol
from eventsourcing.persistence import JSONTranscoder, Mapper, StoredEvent

from application.append import NO_CAUSE, Causation
from domain.catalogue import DomainEvent
from domain.event import UnknownEvent
from infrastructure.event_store.codec import CODEC, Codec, NoKeys
from infrastructure.event_store.event_log import (
    SNAPSHOT_TOPICS,
    Aggregate,
    Snapshotted,
    apply_event,
    decode_snapshot,
    encode_snapshot,
)


class LibraryEvent(msgspec.Struct, frozen=True):
    """Event with its stream and version: the library's DomainEventProtocol."""

    originator_id: UUID
    originator_version: int
    event: DomainEvent | UnknownEvent
    cause: Causation = NO_CAUSE

    def mutate(self, aggregate: Aggregate | None) -> Aggregate | None:
        return apply_event(self.originator_id, aggregate, self.event)


class AggregateSnapshot(msgspec.Struct, frozen=True):
    """Aggregate as of a version: the library's SnapshotProtocol."""

    originator_id: UUID
    originator_version: int
    state: Snapshotted

    @classmethod
    def take(cls, aggregate: Snapshotted) -> AggregateSnapshot:
        return cls(aggregate.id, aggregate.version, aggregate)

    def mutate(self, _: Aggregate | None) -> Aggregate:
        return self.state


class StructMapper(Mapper[UUID]):
    """The library's Mapper for tagged Structs; its transcoder is never asked.

    Without a codec that has keys, personal fields are read as if they had been erased, and
    written in the clear.
    """

    def __init__(self, codec: Codec | None = None) -> None:
        super().__init__(JSONTranscoder())
        self._writing = codec or CODEC
        self._codec = codec or Codec(encryption=NoKeys())

    def to_stored_event(self, domain_event: DomainEventProtocol[UUID]) -> StoredEvent:
        match domain_event:
            case LibraryEvent(event=event, cause=cause):
                topic, state = self._writing.encode(event, cause)
            case AggregateSnapshot(state=aggregate):
                topic, state = encode_snapshot(aggregate)
            case _:
                raise TypeError(f"not a fact or a snapshot: {domain_event!r}")
        return StoredEvent(
            originator_id=domain_event.originator_id,
            originator_version=domain_event.originator_version,
            topic=topic,
            state=state,
        )

    def to_domain_event(self, stored_event: StoredEvent) -> Any:
        """Return a LibraryEvent or an AggregateSnapshot. Raises UnreadableEvent."""
        id, version = stored_event.originator_id, stored_event.originator_version
        assert isinstance(id, UUID)
        if stored_event.topic in SNAPSHOT_TOPICS:
            return AggregateSnapshot(id, version, decode_snapshot(stored_event.state))
        event, cause = self._codec.decode(stored_event.topic, stored_event.state)
        return LibraryEvent(id, version, event, cause)
