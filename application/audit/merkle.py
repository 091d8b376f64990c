"""Merkle tree of RFC 6962 section 2.1 with SHA-256, over the entries of stored events."""

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
    """Entry of one event in a seal. The digest excludes the position, so that a moved event can
    be distinguished from an altered one."""

    position: int
    digest: bytes

    def __bytes__(self) -> bytes:
        return _ENTRY.pack(self.position, self.digest)


class StoredEventRow(NamedTuple):
    """A stored event, byte for byte."""

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
    """Concatenate the entries, as they are stored beside their seal."""
    return b"".join(map(bytes, entries))


def unpack_entries(entries: bytes) -> Iterator[SealedEntry]:
    """Yield the entries. Raises struct.error for an incomplete one."""
    return (SealedEntry(*fields) for fields in _ENTRY.iter_unpack(entries))


def merkle_root(leaves: Iterable[bytes]) -> bytes:
    """Return the Merkle tree hash of the leaves in this order."""
    row = [leaf_hash(leaf) for leaf in leaves]
    if not row:
        return sha256().digest()
    while len(row) > 1:
        row = _above(row)
    return row[0]


class MerkleTree:
    """Merkle tree with all levels in memory, to compute many audit paths."""

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._rows = [[leaf_hash(leaf) for leaf in leaves]]
        while len(self._rows[-1]) > 1:
            self._rows.append(_above(self._rows[-1]))

    def path(self, index: int) -> tuple[bytes, ...]:
        """Return the audit path of a leaf: the sibling hashes up to the root."""
        found = []
        for row in self._rows[:-1]:
            beside = index ^ 1
            if beside < len(row):  # the last of an odd row goes up alone
                found.append(row[beside])
            index //= 2
        return tuple(found)


def root_from_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
    """Return the root of a tree of `count` leaves with this leaf and path; None if invalid."""
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
