"""What a seal knows of an event: its position, and a digest of everything that is stored of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from struct import Struct
from typing import NamedTuple
from uuid import UUID

_PLACE = Struct(">16sqI").pack  # stream, version, length of the topic in bytes
_ENTRY = Struct(">q32s")

SIZE = _ENTRY.size  # bytes of one entry


class SealedEntry(NamedTuple):
    """One event, as a seal remembers it. That the digest leaves the position out tells an event
    that was moved from one that was changed."""

    position: int
    digest: bytes

    def __bytes__(self) -> bytes:
        return _ENTRY.pack(self.position, self.digest)


class StoredEventRow(NamedTuple):
    """An event as it lies in the log, byte for byte."""

    stream: UUID
    version: int
    position: int
    topic: str
    state: bytes

    @property
    def entry(self) -> SealedEntry:
        """SHA-256 over stream, version, length of the topic, topic and state."""
        topic = self.topic.encode()
        place = _PLACE(self.stream.bytes, self.version, len(topic))
        return SealedEntry(self.position, sha256(place + topic + self.state).digest())


def pack_entries(entries: Iterable[SealedEntry]) -> bytes:
    """The entries one after the other, as they are kept beside their seal."""
    return b"".join(map(bytes, entries))


def unpack_entries(entries: bytes) -> Iterator[SealedEntry]:
    """Raises struct.error for bytes that are no whole number of entries."""
    return (SealedEntry(*fields) for fields in _ENTRY.iter_unpack(entries))


# The Merkle tree over the events of a seal: its root, and the path that leads from one to it.
#
# Source: RFC 6962 section 2.1, with SHA-256.


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """The hash that stands for these leaves in this order."""
    row = [leaf_hash(leaf) for leaf in leaves]
    if not row:
        return sha256().digest()
    while len(row) > 1:
        row = _above(row)
    return row[0]


class MerkleTree:
    """A tree that is asked for many paths: every row of it is kept, from the leaves up."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._rows = [[leaf_hash(leaf) for leaf in leaves]]
        while len(self._rows[-1]) > 1:
            self._rows.append(_above(self._rows[-1]))

    def path(self, index: int) -> tuple[bytes, ...]:
        """The hashes that a leaf is joined with on its way to the root."""
        found = []
        for row in self._rows[:-1]:
            beside = index ^ 1
            if beside < len(row):  # the last of an odd row goes up alone
                found.append(row[beside])
            index //= 2
        return tuple(found)


def root_from_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """The root of a tree of `count` leaves in which this leaf has this path; None if none has."""
    if not 0 <= index < count:
        return None
    reached, rest = leaf_hash(leaf), iter(path)
    while count > 1:
        if index ^ 1 < count:
            beside = next(rest, None)
            if beside is None:
                return None
            pair = (beside, reached) if index % 2 else (reached, beside)
            reached = _joined(*pair)
        index, count = index // 2, (count + 1) // 2
    return reached if next(rest, None) is None else None


def leaf_hash(leaf: bytes) -> bytes:
    return sha256(b"\0" + leaf).digest()


def _above(row: list[bytes]) -> list[bytes]:
    pairs = [_joined(row[i], row[i + 1]) for i in range(0, len(row) - 1, 2)]
    return pairs + row[-1:] if len(row) % 2 else pairs


def _joined(left: bytes, right: bytes) -> bytes:
    return sha256(b"\1" + left + right).digest()
