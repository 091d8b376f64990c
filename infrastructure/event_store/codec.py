"""The bytes of an event: `{"v":2,"event":{"type":...},"command":...,"trace":...}`."""

from __future__ import annotations

from typing import Any, Protocol, get_args
from uuid import UUID

import msgspec

from application.envelope import NO_CAUSE, Cause, DomainEvent
from domain.event import Event, topic_of
from infrastructure.event_store.upcasting import Upcasters

TOPICS = frozenset(topic_of(event_class) for event_class in get_args(DomainEvent))


class UnreadableEvent(Exception):
    """A stored event that this version of the code cannot make sense of."""


class Protection(Protocol):
    """Where personal fields are turned into what may be stored, and back.

    Both functions give an event of the same class; fields of an erased owner come back
    as tombstones.
    """

    def protect(self, event: Event) -> Event: ...

    def reveal(self, event: DomainEvent) -> DomainEvent: ...


class _State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`v` is the version of the event's class, left out while it is 1."""

    v: int = 1
    event: DomainEvent
    command: UUID | None = None
    trace: str | None = None


class _Written(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The same, as any event goes in."""

    v: int = 1
    event: Event
    command: UUID | None = None
    trace: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_State).decode


class Codec:
    """Between events and bytes. Events are stored in the clear where there is no protection."""

    def __init__(
        self, upcasters: Upcasters | None = None, protection: Protection | None = None
    ) -> None:
        self._upcasters = upcasters or Upcasters()
        self._protection = protection

    def encode(self, event: Event, cause: Cause = NO_CAUSE) -> tuple[str, bytes]:
        """The topic of the event, and the bytes to file under it."""
        topic = topic_of(event)
        if self._protection is not None:
            event = self._protection.protect(event)
        state = _Written(
            v=self._upcasters.version(topic),
            event=event,
            command=cause.command_id,
            trace=cause.traceparent,
        )
        return topic, _encode(state)

    def decode(self, topic: str, state: bytes) -> tuple[DomainEvent, Cause]:
        """Raises UnreadableEvent for a topic or bytes that are none of ours."""
        if topic not in TOPICS:
            raise UnreadableEvent(f"no event has the topic {topic!r}")
        try:
            stored = self._upcast(topic, state) if topic in self._upcasters else _decode(state)
        except (ValueError, KeyError, TypeError) as error:  # msgspec's errors are ValueErrors
            raise UnreadableEvent(f"{topic}: {error}") from error
        if topic_of(stored.event) != topic:
            raise UnreadableEvent(f"{topic_of(stored.event)} is filed under {topic}")
        event = stored.event
        if self._protection is not None:
            event = self._protection.reveal(event)
        if stored.command is None and stored.trace is None:
            return event, NO_CAUSE
        return event, Cause(stored.command, stored.trace)

    def _upcast(self, topic: str, state: bytes) -> _State:
        raw: dict[str, Any] = msgspec.json.decode(state)
        raw["event"] = self._upcasters.upcast(topic, raw.get("v", 1), raw["event"])
        return msgspec.convert(raw, _State)


CODEC = Codec()
