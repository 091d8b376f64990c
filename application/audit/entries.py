"""What a seal knows of an event: its position, and a digest of everything that is stored of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import sha256
from struct import Struct
from typing import NamedTuple
from uuid import UUID

_PLACE = Struct(">16sqI").pack  # stream, version, length of the topic in bytes
_ENTRY = Struct(">q32s")

SIZE = _ENTRY.size  # bytes of one entry


class Entry(NamedTuple):
    """One event, as a seal remembers it. That the digest leaves the position out tells an event
    that was moved from one that was changed."""

    position: int
    digest: bytes

    def __bytes__(self) -> bytes:
        return _ENTRY.pack(self.position, self.digest)


class Stored(NamedTuple):
    """An event as it lies in the log, byte for byte."""

    stream: UUID
    version: int
    position: int
    topic: str
    state: bytes

    @property
    def entry(self) -> Entry:
        """SHA-256 over stream, version, length of the topic, topic and state."""
        topic = self.topic.encode()
        place = _PLACE(self.stream.bytes, self.version, len(topic))
        return Entry(self.position, sha256(place + topic + self.state).digest())


def packed(entries: Iterable[Entry]) -> bytes:
    """The entries one after the other, as they are kept beside their seal."""
    return b"".join(map(bytes, entries))


def unpacked(entries: bytes) -> Iterator[Entry]:
    """Raises struct.error for bytes that are no whole number of entries."""
    return (Entry(*fields) for fields in _ENTRY.iter_unpack(entries))
