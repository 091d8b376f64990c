"""Which fields of which events are personal, and the box in which they are stored."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, Protocol
from uuid import UUID

import msgspec

from domain.batch.events import BatchCancelled, BatchStarted
from domain.event import Event, topic_of
from domain.upload.events import (
    AttemptFailed,
    AttemptSucceeded,
    UploadCancelled,
    UploadFailed,
    UploadQuarantined,
    UploadRegistered,
    UploadRejected,
    UploadReleased,
)

# With what stands in their place in the clear, and is read where the owner was erased.
_FIELDS: tuple[tuple[type[Event], dict[str, Any]], ...] = (
    (UploadRegistered, {"path": "", "media_type": None, "checksum": None, "metadata": {}}),
    (UploadRejected, {"path": "", "media_type": None, "message": ""}),
    (AttemptFailed, {"message": ""}),
    (AttemptSucceeded, {"results": {}}),
    (UploadFailed, {"message": ""}),
    (UploadQuarantined, {"reason": ""}),
    (UploadReleased, {"reason": ""}),
    (UploadCancelled, {"reason": ""}),
    (BatchStarted, {"label": "", "notify": None, "metadata": {}}),
    (BatchCancelled, {"reason": ""}),
)
PERSONAL = {topic_of(event): tombstones for event, tombstones in _FIELDS}

BEGINNING = frozenset(topic_of(event) for event in (UploadRegistered, BatchStarted))
"""Topics that are refused while their owner is being erased."""

_KEY = re.compile(rb'\{(?:"v":\d+,)?"private":\{"key":"([0-9a-f-]{36})"').match

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Box(msgspec.Struct, frozen=True):
    """Personal fields of one event, encrypted with the owner's key of this id."""

    key: UUID
    box: bytes


class Protection(Protocol):
    """Encrypts and decrypts with the keys of owners, which are looked up beforehand."""

    async def prepare(self, owners: Collection[str], beginning: Collection[str]) -> None:
        """Makes sure that `close` can be asked for these owners at once.

        `beginning` are those whose data begins with what is to be written. Raises Unavailable,
        InvalidState while one of them is being erased.
        """

    def close(self, owner: str, content: bytes) -> Box: ...

    async def learn(self, keys: Collection[UUID]) -> None:
        """Makes sure that `open` can be asked for boxes of these keys. Raises Unavailable."""

    def open(self, box: Box) -> bytes | None:
        """The content; None if the key was destroyed. Raises LookupError for one not learned."""


class Withheld:
    """Keeps every box shut, for tools that have no keys: they read what an erasure would leave."""

    async def prepare(self, owners: Collection[str], beginning: Collection[str]) -> None:
        raise LookupError("nothing can be written without keys")

    def close(self, owner: str, content: bytes) -> Box:
        raise LookupError("nothing can be written without keys")

    async def learn(self, keys: Collection[UUID]) -> None:
        """There is nothing to learn."""

    def open(self, box: Box) -> bytes | None:
        return None


def parted(event: Event, topic: str) -> tuple[Event, bytes | None]:
    """The event without its personal fields, and those; None where it has none."""
    tombstones = PERSONAL.get(topic)
    if tombstones is None:
        return event, None
    values = {name: getattr(event, name) for name in tombstones}
    if values == tombstones:
        return event, None
    blank = {name: {} if value == {} else value for name, value in tombstones.items()}
    return msgspec.structs.replace(event, **blank), _encode(values)


def rejoined(event: Any, content: bytes) -> Any:
    """The event with its personal fields. Raises msgspec.DecodeError."""
    return msgspec.structs.replace(event, **_decode(content))


def keys_in(states: Iterable[bytes]) -> set[bytes]:
    """The ids of the keys that these stored events name, as they are written there."""
    return {found[1] for state in states if (found := _KEY(state)) is not None}


def key_of(state: bytes) -> UUID | None:
    """The id of the key that a stored event is encrypted with; None for one in the clear."""
    found = _KEY(state)
    return None if found is None else UUID(found[1].decode())
