"""The Merkle tree over the events of a seal: its root, and the path that leads from one to it.

Source: RFC 6962 section 2.1, with SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256


def root_of(leaves: Iterable[bytes]) -> bytes:
    """The hash that stands for these leaves in this order."""
    row = [leaf_hash(leaf) for leaf in leaves]
    if not row:
        return sha256().digest()
    while len(row) > 1:
        row = _above(row)
    return row[0]


class Tree:
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


def root_by(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes | None:
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
