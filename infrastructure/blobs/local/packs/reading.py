"""Blobs in packs, read: in a thread, or at once where the kernel has the bytes in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from application.ports.blobs import BlobMissing
from infrastructure.blobs.local.at_hand import at_hand
from infrastructure.blobs.local.packs.members import content_at, is_there
from infrastructure.blobs.local.packs.naming import Packed

Found = TypeVar("Found", bytes, bytes | None)


def read(path: Path, packed: Packed, start: int, end: int | None) -> bytes:
    """The bytes from `start` up to `end`. Raises BlobMissing, OSError."""
    return _read(path, packed, start, end, _from_disk)


def read_at_hand(path: Path, packed: Packed, start: int, end: int | None) -> bytes | None:
    """The same without waiting for the disk; None is for a thread to find out."""
    return _read(path, packed, start, end, at_hand)


def size_of(path: Path, packed: Packed) -> int:
    """0 for one that is not there, or was freed. Raises OSError."""
    try:
        with _opened(path, packed) as descriptor:
            return packed.place.size if is_there(descriptor, packed) else 0
    except BlobMissing:
        return 0


def _read(
    path: Path,
    packed: Packed,
    start: int,
    end: int | None,
    take: Callable[[int, int, int], Found],
) -> Found | bytes:
    """The header is looked at last: who frees the member makes it nothing first."""
    size = packed.place.size
    length = max(0, (size if end is None else min(end, size)) - start)
    with _opened(path, packed) as descriptor:
        found = take(descriptor, content_at(packed.place) + start, length) if length else b""
        if found is not None and not is_there(descriptor, packed):
            raise BlobMissing(f"no blob {packed} is stored")
        return found


def _from_disk(descriptor: int, start: int, length: int) -> bytes:
    return os.pread(descriptor, length, start)


@contextmanager
def _opened(path: Path, packed: Packed) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise BlobMissing(f"no blob {packed} is stored") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
