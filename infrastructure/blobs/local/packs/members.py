"""What a pack consists of: members, each a header that names it and then its bytes.

A member begins at a multiple of 4 KiB, so that the file system can take back just its blocks. A
freed one is zeros. New members come behind all others, and no place is used twice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from infrastructure.blobs.local.packs.naming import Packed, Place
from infrastructure.blobs.naming import MAX_NAME

BLOCK = 4096

_MARK = b"uptrail\x01"
_HEADER = Struct(f"<8sIH{MAX_NAME}s")  # the mark, the size of the blob, its name and how long it is
HEADER = _HEADER.size


class Member(NamedTuple):
    """What a header says, of a member that was not freed."""

    name: str
    size: int


def header(name: str, size: int) -> bytes:
    encoded = name.encode()
    return _HEADER.pack(_MARK, size, len(encoded), encoded)


def padding(size: int) -> bytes:
    """What is missing behind a blob of this size to the next block."""
    return bytes(-(HEADER + size) % BLOCK)


def blocks(size: int) -> int:
    """How many of them a member with so many bytes takes."""
    return -(-(HEADER + size) // BLOCK)


def content_at(place: Place) -> int:
    """Where in the pack the bytes of the blob begin."""
    return place.block * BLOCK + HEADER


def is_there(descriptor: int, packed: Packed) -> bool:
    """Whether the member is where its name says, and not freed."""
    member = _member(os.pread(descriptor, HEADER, packed.place.block * BLOCK))
    return member == Member(packed.chosen, packed.place.size)


def members(descriptor: int, pack: str) -> Iterator[Packed]:
    """Those that are left; what a crash left half written, promised to nobody, ends the pack."""
    size = os.fstat(descriptor).st_size
    block = 0
    while block * BLOCK < size:
        head = os.pread(descriptor, HEADER, block * BLOCK)
        if member := _member(head):
            yield Packed(member.name, Place(pack, block, member.size))
            block += blocks(member.size)
        elif any(head):
            return
        else:
            block = _behind_hole(descriptor, block)


def _member(head: bytes) -> Member | None:
    if len(head) < HEADER or not head.startswith(_MARK):
        return None
    _, size, length, name = _HEADER.unpack(head)
    try:
        return Member(name[:length].decode("ascii"), size)
    except UnicodeDecodeError:
        return None


def _behind_hole(descriptor: int, block: int) -> int:
    """The next block that may hold something: most file systems say where their holes end."""
    try:
        data = os.lseek(descriptor, (block + 1) * BLOCK, os.SEEK_DATA)
    except OSError:  # there is nothing behind it (ENXIO), or no telling
        data = 0
    return max(block + 1, data // BLOCK)
