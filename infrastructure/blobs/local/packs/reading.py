"""Reading of blobs in packs, in a thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from application.ports.blobs import BlobMissing
from infrastructure.blobs.local.packs.members import content_at, is_there
from infrastructure.blobs.local.packs.naming import Packed


def read(path: Path, packed: Packed, start: int, end: int | None) -> bytes:
    """Return the bytes from `start` up to `end`. Raises BlobMissing, OSError.

    The header is checked last, because freeing a member clears its header first.
    """
    size = packed.place.size
    length = max(0, (size if end is None else min(end, size)) - start)
    with _opened(path, packed) as descriptor:
        content = os.pread(descriptor, length, content_at(packed.place) + start)
        if not is_there(descriptor, packed):
            raise BlobMissing(f"no blob {packed} is stored")
        return content


def size_of(path: Path, packed: Packed) -> int:
    """0 for one that is not there, or was freed. Raises OSError."""
    try:
        with _opened(path, packed) as descriptor:
            return packed.place.size if is_there(descriptor, packed) else 0
    except BlobMissing:
        return 0


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
