"""Units of writing to the event log: appends, their conditions and results, recorded events."""

from __future__ import annotations

from uuid import UUID

import msgspec

from domain.catalogue import DomainEvent
from domain.event import Event, UnknownEvent


class Causation(msgspec.Struct, frozen=True):
    """Cause of recorded events: the command, and the W3C trace that it ran in."""

    command_id: UUID | None = None
    traceparent: str | None = None


NO_CAUSE = Causation()


class RecordedEvent(msgspec.Struct, frozen=True, gc=False):
    """Event in the log: `version` is its place in its stream, `position` in the total order."""

    stream: UUID
    version: int
    position: int
    event: DomainEvent | UnknownEvent
    cause: Causation = NO_CAUSE


class StreamAppend(msgspec.Struct, frozen=True):
    """Events to append to one stream.

    `expected_version` is the stream's version as the writer knows it (0: no such stream yet).
    None appends at the current version, for facts that commute with all others. `owner` is the
    owner of the stream, whose key encrypts personal fields; events that name their owner need none.
    """

    stream: UUID
    expected_version: int | None
    events: tuple[Event, ...]
    owner: str | None = None


class AppendCondition(msgspec.Struct, frozen=True):
    """Requires that the stream has no event of these topics beyond version `after`."""

    stream: UUID
    after: int
    topics: frozenset[str]


class IdempotencyRecord(msgspec.Struct, frozen=True):
    """Response to the command with this id, stored to answer a repetition.

    `fingerprint` is the hash of the request: the same id with another request is rejected.
    `owner` is the owner of what the command is about, whose erasure deletes the record.
    """

    command_id: UUID
    owner: str
    fingerprint: str
    body: bytes


class Append(msgspec.Struct, frozen=True):
    """Writes that are recorded together or not at all."""

    writes: tuple[StreamAppend, ...]
    conditions: tuple[AppendCondition, ...] = ()
    cause: Causation = NO_CAUSE
    idempotency: IdempotencyRecord | None = None


class AppendResult(msgspec.Struct, frozen=True):
    """Proof of a durable append: its last position, and the new versions of its streams."""

    position: int
    versions: dict[UUID, int]


def append_to_stream(
    stream: UUID,
    expected_version: int | None,
    *events: Event,
    cause: Causation = NO_CAUSE,
    owner: str | None = None,
) -> Append:
    """Return an append to a single stream."""
    return Append((StreamAppend(stream, expected_version, events, owner),), cause=cause)
