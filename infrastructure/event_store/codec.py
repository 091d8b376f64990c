"""Events to bytes and back, with upcasting of older shapes and encryption of personal fields.

The bytes are `{"v":2,"private":{...},"event":{"type":...},"command":...,"trace":...}`. `private`
holds the encrypted personal fields; it comes first, so that the id of its key is found by a prefix
match.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeAlias
from uuid import UUID

import msgspec
import structlog
from msgspec.structs import replace

from application.append import NO_CAUSE, Append, Causation
from domain.catalogue import EVENT_CLASSES, DomainEvent
from domain.event import Event, UnknownEvent, topic_of

PERSONAL_FIELDS = {
    topic: event.declaration.personal
    for topic, event in EVENT_CLASSES.items()
    if event.declaration.personal
}
"""By topic, the personal fields and what stands in their place in the clear."""

OPENING_TOPICS = frozenset(
    topic for topic, event in EVENT_CLASSES.items() if event.declaration.opens
)
"""Topics that are refused while their owner is being erased."""

Upcast: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]
"""Turns a stored event of version n, as plain JSON types, into version n + 1."""

UpcastChains: TypeAlias = Mapping[str, Sequence[Upcast]]

UPCASTS: UpcastChains = {}
"""By topic: the first function leads from version 1 to 2, the next from 2 to 3, and so on.

An event class whose shape changed gets a function here and keeps its tag. A new field with a
default needs none.
"""

_log = structlog.get_logger(__name__)

_match_key = re.compile(rb'\{(?:"v":\d+,)?"private":\{"key":"([0-9a-f-]{36})"').match


# As plain dicts, where the declaration has read-only ones, which cannot be encoded.
_BLANKS = {
    topic: {name: {} if value == {} else value for name, value in blanks.items()}
    for topic, blanks in PERSONAL_FIELDS.items()
}


class UnreadableEvent(Exception):
    """The bytes of a stored event are damaged, or cannot be decrypted."""


class EncryptedFields(msgspec.Struct, frozen=True):
    """Personal fields of one event, encrypted with the owner's key of this id."""

    key: UUID
    box: bytes


class FieldEncryption(Protocol):
    """Encryption with the keys of owners, which are loaded beforehand."""

    async def prepare(self, owners: Collection[str], opening: Collection[str]) -> None:
        """Load the keys of these owners, so that `encrypt` needs no I/O.

        `opening` are the owners of events that open a batch or upload. Raises Unavailable,
        InvalidState while one of them is being erased.
        """

    def encrypt(self, owner: str, content: bytes) -> EncryptedFields: ...

    async def load_keys(self, keys: Collection[UUID]) -> None:
        """Load these keys, so that `decrypt` needs no I/O. Raises Unavailable."""

    def decrypt(self, fields: EncryptedFields) -> bytes | None:
        """Return the content; None if its key was destroyed.

        Raises LookupError for a key that was not loaded, ValueError for damaged content.
        """


class NoKeys:
    """Encryption for tools without keys: personal fields read as if they were erased."""

    async def prepare(self, owners: Collection[str], opening: Collection[str]) -> None:
        raise LookupError("nothing can be written without keys")

    def encrypt(self, owner: str, content: bytes) -> EncryptedFields:
        raise LookupError("nothing can be written without keys")

    async def load_keys(self, keys: Collection[UUID]) -> None:
        """Load nothing."""

    def decrypt(self, fields: EncryptedFields) -> bytes | None:
        return None


class _State(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Stored form. `v` is the version of the event's class, left out while it is 1."""

    v: int = 1
    private: EncryptedFields | None = None
    event: DomainEvent
    command: UUID | None = None
    trace: str | None = None


class _Encoded(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """Stored form, of any event class."""

    v: int = 1
    private: EncryptedFields | None = None
    event: Event
    command: UUID | None = None
    trace: str | None = None


class _UnknownState(msgspec.Struct, frozen=True):
    """Stored form as far as it is the same in every version of Uptrail."""

    event: msgspec.Raw
    v: int = 1
    command: UUID | None = None
    trace: str | None = None


class _CommonFields(msgspec.Struct, frozen=True):
    at: datetime
    by: str


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_State).decode
_decode_unknown = msgspec.json.Decoder(_UnknownState).decode
_decode_common = msgspec.json.Decoder(_CommonFields).decode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode


class Codec:
    """Encoder and decoder of stored events. Without `encryption` all fields are in the clear."""

    def __init__(
        self, upcasts: UpcastChains = UPCASTS, encryption: FieldEncryption | None = None
    ) -> None:
        self._upcasts = {topic: tuple(chain) for topic, chain in upcasts.items() if chain}
        self._encryption = encryption
        self._logged: set[tuple[str, int]] = set()

    async def prepare(self, append: Append) -> None:
        """Load the keys of the owners; to be awaited before `encode`.

        Raises InvalidState, Unavailable, ValueError for personal fields without an owner.
        """
        if self._encryption is None:
            return
        owners, opening = set(), set()
        for write in append.writes:
            for event in write.events:
                topic = topic_of(event)
                if topic in PERSONAL_FIELDS:
                    owner = _owner_of(event, write.owner)
                    owners.add(owner)
                    if topic in OPENING_TOPICS:
                        opening.add(owner)
        if owners:
            await self._encryption.prepare(owners, opening)

    async def load_keys(self, states: Iterable[bytes]) -> None:
        """Load the keys that these events need; to be awaited before `decode`.

        Raises Unavailable.
        """
        if self._encryption is not None and (keys := key_ids_in(states)):
            await self._encryption.load_keys({UUID(key.decode()) for key in keys})

    def encode(
        self, event: Event, cause: Causation = NO_CAUSE, owner: str | None = None
    ) -> tuple[str, bytes]:
        """Return the topic of the event and its bytes."""
        if isinstance(event, UnknownEvent):
            raise TypeError(f"an event of the unknown type {event.topic} cannot be written")
        topic = topic_of(event)
        private = None
        if self._encryption is not None and topic in PERSONAL_FIELDS:
            event, content = split_personal(event)
            if content is not None:
                private = self._encryption.encrypt(_owner_of(event, owner), content)
        state = _Encoded(
            v=self._version(topic),
            private=private,
            event=event,
            command=cause.command_id,
            trace=cause.traceparent,
        )
        return topic, _encode(state)

    def decode(self, topic: str, state: bytes) -> tuple[DomainEvent | UnknownEvent, Causation]:
        """Return the event and its cause; an UnknownEvent for a type of a later version.

        Raises UnreadableEvent for damaged bytes.
        """
        if topic not in EVENT_CLASSES:
            return self._decode_unknown(topic, state)
        try:
            stored = self._upcast(topic, state) if topic in self._upcasts else _decode(state)
        except (ValueError, KeyError, TypeError) as error:  # msgspec's errors are ValueErrors
            if self._is_newer(topic, state):
                return self._decode_unknown(topic, state)
            raise UnreadableEvent(f"{topic}: {error}") from error
        if stored.v > self._version(topic):
            return self._decode_unknown(topic, state)
        event = stored.event
        if type(event) is not EVENT_CLASSES[topic]:
            raise UnreadableEvent(f"{topic_of(event)} is stored with the topic {topic}")
        if stored.private is not None:
            event = self._decrypt(event, stored.private)
        if stored.command is None and stored.trace is None:
            return event, NO_CAUSE
        return event, Causation(stored.command, stored.trace)

    def _decrypt(self, event: DomainEvent, private: EncryptedFields) -> DomainEvent:
        if self._encryption is None:
            raise UnreadableEvent("its personal fields are encrypted, and there are no keys here")
        try:
            content = self._encryption.decrypt(private)
            return event if content is None else merge_personal(event, content)
        except (LookupError, ValueError) as error:
            raise UnreadableEvent(f"its personal fields cannot be read: {error}") from None

    def _version(self, topic: str) -> int:
        """Return the version that events of this topic have today, from 1."""
        return 1 + len(self._upcasts.get(topic, ()))

    def _upcast(self, topic: str, state: bytes) -> _State:
        raw: dict[str, Any] = msgspec.json.decode(state)
        event, version = raw["event"], raw.get("v", 1)
        for step in self._upcasts[topic][version - 1 :]:
            event = step(event)
        raw["event"] = event
        return msgspec.convert(raw, _State)

    def _is_newer(self, topic: str, state: bytes) -> bool:
        try:
            return _decode_unknown(state).v > self._version(topic)
        except ValueError:
            return False

    def _decode_unknown(self, topic: str, state: bytes) -> tuple[UnknownEvent, Causation]:
        try:
            stored = _decode_unknown(state)
            common = _decode_common(stored.event)
        except ValueError as error:
            raise UnreadableEvent(f"no event has the topic {topic!r}: {error}") from error
        if (topic, stored.v) not in self._logged:
            self._logged.add((topic, stored.v))
            _log.warning(
                "unknown_event_type",
                topic=topic,
                version=stored.v,
                effect="skipped by the projector and the orchestrator, shown raw in histories",
                advice="a later version of Uptrail recorded it: upgrade this process",
            )
        event = UnknownEvent(at=common.at, by=common.by, topic=topic, content=bytes(stored.event))
        return event, Causation(stored.command, stored.trace)


def split_personal(event: Event) -> tuple[Event, bytes | None]:
    """Return the event without its personal fields, and those as JSON; None if all are blank."""
    blanks = _BLANKS.get(topic_of(event), {})
    values = {name: getattr(event, name) for name in blanks}
    if values == blanks:
        return event, None
    return replace(event, **blanks), _encode(values)


def merge_personal(event: Any, content: bytes) -> Any:
    """Return the event with its personal fields. Raises msgspec.DecodeError."""
    return replace(event, **_decode_fields(content))


def key_ids_in(states: Iterable[bytes]) -> set[bytes]:
    """Return the ids of the keys that these stored events are encrypted with, as text."""
    return {found[1] for state in states if (found := _match_key(state)) is not None}


def key_id_of(state: bytes) -> UUID | None:
    """Return the id of the key that a stored event is encrypted with, if it is."""
    found = _match_key(state)
    return None if found is None else UUID(found[1].decode())


def _owner_of(event: Event, owner: str | None) -> str:
    named: str | None = getattr(event, "owner", owner)
    if named is None:
        raise ValueError(f"{topic_of(event)} has personal fields, but the append names no owner")
    return named


CODEC = Codec()
