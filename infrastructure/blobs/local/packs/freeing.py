"""Room that packed blobs took, given back: member by member, and the pack after the last."""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from pathlib import Path

from infrastructure.blobs.local.disk import sync_data, sync_folder, try_lock
from infrastructure.blobs.local.packs.members import BLOCK, HEADER, blocks, is_there, members
from infrastructure.blobs.local.packs.naming import Packed
from infrastructure.libc import c_function

_PUNCH_HOLE = 0x02 | 0x01  # and keep the size of the file (fallocate(2))
_NOT_OFFERED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_fallocate = (
    c_function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if ctypes.sizeof(ctypes.c_long) == ctypes.sizeof(ctypes.c_int64)  # as wide as its offsets
    else None
)


def free(path: Path, packed: Packed) -> None:
    """Takes the bytes of a member away for good; one that is not there is fine. Raises OSError.

    Its header goes first, and readers look at that last: none of them takes zeros for content.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        if is_there(descriptor, packed):
            start = packed.place.block * BLOCK
            os.pwrite(descriptor, bytes(HEADER), start)
            _give_back(descriptor, start, blocks(packed.place.size) * BLOCK)
            sync_data(descriptor)
        if _is_hole(descriptor):
            _remove_unused(path, descriptor)
    finally:
        os.close(descriptor)


def left_in(path: Path, pack: str) -> list[str]:
    """The names of what a pack holds; it goes if that is nothing and nobody adds to it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return []
    try:
        left = [str(packed) for packed in members(descriptor, pack)]
        if not left:
            _remove_unused(path, descriptor)
        return left
    finally:
        os.close(descriptor)


def _remove_unused(path: Path, descriptor: int) -> None:
    """Who adds to a pack holds its lock for as long."""
    if try_lock(descriptor):
        with suppress(FileNotFoundError):
            path.unlink()
            sync_folder(path.parent)


def _is_hole(descriptor: int) -> bool:
    """Whether the file has no bytes left; False where its file system cannot tell."""
    try:
        os.lseek(descriptor, 0, os.SEEK_DATA)
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


def _give_back(descriptor: int, start: int, length: int) -> None:
    """Zeros in any case; as a hole in the file where its file system knows that."""
    if _fallocate is not None and _fallocate(descriptor, _PUNCH_HOLE, start, length) == 0:
        return
    if _fallocate is not None and (number := ctypes.get_errno()) not in _NOT_OFFERED:
        raise OSError(number, os.strerror(number))
    os.pwrite(descriptor, bytes(length), start)
