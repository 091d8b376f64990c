"""The bytes of an event: `{"v":2,"private":{...},"event":{"type":...},"command":...,"trace":...}`.

`private` holds personal fields, encrypted; it stands first, so that its key is found at a glance.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args
from uuid import UUID

import msgspec

from application.append import NO_CAUSE, Append, Causation, DomainEvent
from domain.event import Event, topic_of
from infrastructure.event_store.personal import (
    BEGINNING,
    PERSONAL,
    Box,
    Protection,
    keys_in,
    parted,
    rejoined,
)
from infrastructure.event_store.upcasting import Upcasters

_CLASSES = {topic_of(event_class): event_class for event_class in get_args(DomainEvent)}
TOPICS = frozenset(_CLASSES)


class UnreadableEvent(Exception):
    """A stored event that this version of the code cannot make sense of."""


class _State(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """`v` is the version of the event's class, left out while it is 1."""

    v: int = 1
    private: Box | None = None
    event: DomainEvent
    command: UUID | None = None
    trace: str | None = None


class _Written(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """The same, as any event goes in."""

    v: int = 1
    private: Box | None = None
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

    async def prepare(self, append: Append) -> None:
        """To be awaited before `encode`: looks up the keys of the owners.

        Raises InvalidState, Unavailable, ValueError for personal fields of which nobody says whose.
        """
        if self._protection is None:
            return
        owners, beginning = set(), set()
        for write in append.writes:
            for event in write.events:
                topic = topic_of(event)
                if topic in PERSONAL:
                    owner = _owner(event, write.owner)
                    owners.add(owner)
                    if topic in BEGINNING:
                        beginning.add(owner)
        if owners:
            await self._protection.prepare(owners, beginning)

    async def learn(self, states: Iterable[bytes]) -> None:
        """To be awaited before `decode`: looks up the keys these name. Raises Unavailable."""
        if self._protection is not None and (keys := keys_in(states)):
            await self._protection.learn({UUID(key.decode()) for key in keys})

    def encode(
        self, event: Event, cause: Causation = NO_CAUSE, owner: str | None = None
    ) -> tuple[str, bytes]:
        """The topic of the event, and the bytes to file under it."""
        topic = topic_of(event)
        box = None
        if self._protection is not None and topic in PERSONAL:
            bare, content = parted(event, topic)
            if content is not None:
                box = self._protection.close(_owner(event, owner), content)
                event = bare
        state = _Written(
            v=self._upcasters.version(topic),
            private=box,
            event=event,
            command=cause.command_id,
            trace=cause.traceparent,
        )
        return topic, _encode(state)

    def decode(self, topic: str, state: bytes) -> tuple[DomainEvent, Causation]:
        """Raises UnreadableEvent for a topic or bytes that are none of ours."""
        if topic not in TOPICS:
            raise UnreadableEvent(f"no event has the topic {topic!r}")
        try:
            stored = self._upcast(topic, state) if topic in self._upcasters else _decode(state)
        except (ValueError, KeyError, TypeError) as error:  # msgspec's errors are ValueErrors
            raise UnreadableEvent(f"{topic}: {error}") from error
        event = stored.event
        if type(event) is not _CLASSES[topic]:  # a tag is asked for only where it is told
            raise UnreadableEvent(f"{topic_of(event)} is filed under {topic}")
        if stored.private is not None:
            event = self._revealed(event, stored.private)
        if stored.command is None and stored.trace is None:
            return event, NO_CAUSE
        return event, Causation(stored.command, stored.trace)

    def _revealed(self, event: DomainEvent, box: Box) -> DomainEvent:
        if self._protection is None:
            raise UnreadableEvent("its personal fields are encrypted, and there are no keys here")
        try:
            content = self._protection.open(box)
            return event if content is None else rejoined(event, content)
        except (LookupError, ValueError) as error:
            raise UnreadableEvent(f"its personal fields cannot be read: {error}") from None

    def _upcast(self, topic: str, state: bytes) -> _State:
        raw: dict[str, Any] = msgspec.json.decode(state)
        raw["event"] = self._upcasters.upcast(topic, raw.get("v", 1), raw["event"])
        return msgspec.convert(raw, _State)


def _owner(event: Event, owner: str | None) -> str:
    named: str | None = getattr(event, "owner", owner)
    if named is None:
        raise ValueError(f"{topic_of(event)} has personal fields, and nobody says whose")
    return named


CODEC = Codec()
