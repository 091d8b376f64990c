"""What surrounds an event: where it stands in the log, and what caused it."""

from __future__ import annotations

from uuid import UUID

import msgspec

from domain.access.events import AccessEvent
from domain.batch.events import BatchEvent
from domain.event import Event
from domain.upload.events import UploadEvent
from domain.webhook.events import WebhookEvent

DomainEvent = UploadEvent | BatchEvent | WebhookEvent | AccessEvent


class Cause(msgspec.Struct, frozen=True):
    """Why events were recorded: the command, and the W3C trace it ran in."""

    command_id: UUID | None = None
    traceparent: str | None = None


NO_CAUSE = Cause()


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An event at its place: `version` in its own stream, `position` in the total order."""

    stream: UUID
    version: int
    position: int
    event: DomainEvent
    cause: Cause = NO_CAUSE


class Write(msgspec.Struct, frozen=True):
    """Events for one stream.

    `expected` is the stream's version as the writer knows it (0: it does not exist yet).
    None appends at whatever version is current: for facts that commute with all others.
    `owner` is whose stream it is: with their key personal fields are encrypted. Events that name
    their owner need none.
    """

    stream: UUID
    expected: int | None
    events: tuple[Event, ...]
    owner: str | None = None


class Unless(msgspec.Struct, frozen=True):
    """A condition: no event of these topics has been recorded in the stream since `after`."""

    stream: UUID
    after: int
    topics: frozenset[str]


class Answer(msgspec.Struct, frozen=True):
    """What the command with this id was answered, kept to answer its repetition.

    `fingerprint` is the hash of the request: the same id with another body is refused.
    """

    command_id: UUID
    fingerprint: str
    body: bytes


class Append(msgspec.Struct, frozen=True):
    """Writes that are recorded together or not at all."""

    writes: tuple[Write, ...]
    unless: tuple[Unless, ...] = ()
    cause: Cause = NO_CAUSE
    answer: Answer | None = None


class Appended(msgspec.Struct, frozen=True):
    """Proof that an append is durable: its last position, and the versions of its streams."""

    position: int
    versions: dict[UUID, int]


def one(
    stream: UUID,
    expected: int | None,
    *events: Event,
    cause: Cause = NO_CAUSE,
    owner: str | None = None,
) -> Append:
    """An append to a single stream."""
    return Append((Write(stream, expected, events, owner),), cause=cause)
