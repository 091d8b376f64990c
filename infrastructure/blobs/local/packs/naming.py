"""Names of packed blobs: what the caller chose, and behind an `@` where in which pack it is."""

from __future__ import annotations

import re
from typing import NamedTuple
from uuid import uuid4

AT = "@"  # in no name that a caller may choose

_PLACE = re.compile(r"([0-9a-f]{16})-([0-9a-f]{1,8})-([0-9a-f]{1,8})")


class Place(NamedTuple):
    """A pack, the number of the block its member begins with, and the bytes of the blob."""

    pack: str
    block: int
    size: int


class Packed(NamedTuple):
    """The name that was chosen for a packed blob, and its place."""

    chosen: str
    place: Place

    def __str__(self) -> str:
        pack, block, size = self.place
        return f"{self.chosen}{AT}{pack}-{block:x}-{size:x}"


def packed_in(name: str) -> Packed | None:
    """None for the name of a blob that has a file of its own. Raises ValueError for nonsense."""
    chosen, at, place = name.partition(AT)
    if not at:
        return None
    found = _PLACE.fullmatch(place)
    if found is None:
        raise ValueError(f"{name!r} names no place in a pack")
    return Packed(chosen, Place(found[1], int(found[2], 16), int(found[3], 16)))


def new_pack() -> str:
    return uuid4().hex[:16]


def file_of(pack: str) -> str:
    """The file of a pack: that of no other blob."""
    return f"{AT}{pack}"


def pack_of(file: str) -> str | None:
    """The pack kept in a file of this name, if it is one's."""
    return file[1:] if file.startswith(AT) else None
