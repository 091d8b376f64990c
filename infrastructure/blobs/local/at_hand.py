"""Bytes that the kernel has in memory, read without a thread: it says where it has not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from infrastructure.blobs.local.disk import open_to_read

_NOWAIT = getattr(os, "RWF_NOWAIT", None)  # Linux alone has it (man 2 preadv2)
_NOT_AT_HAND = frozenset({errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def read_at_hand(name: str, path: Path, start: int, end: int | None, most: int) -> bytes | None:
    """The bytes from `start` up to `end`, if they are `most` at the most and all in memory.

    None is for a thread to find out. A file that arrived a moment ago is in memory, and to copy
    it takes less than the way to a thread. Raises BlobMissing, OSError.
    """
    if _NOWAIT is None:
        return None
    descriptor, size = open_to_read(name, path)
    try:
        length = max(0, (size if end is None else min(end, size)) - start)
        if not 0 < length <= most:
            return None if length else b""
        return at_hand(descriptor, start, length)
    finally:
        os.close(descriptor)


def at_hand(descriptor: int, start: int, length: int) -> bytes | None:
    """So many bytes of an open file, if all are in memory. Raises OSError."""
    if _NOWAIT is None:
        return None
    content = bytearray(length)
    try:
        read = os.preadv(descriptor, [content], start, _NOWAIT)
    except OSError as error:
        if error.errno in _NOT_AT_HAND:
            return None
        raise
    return bytes(content) if read == length else None
