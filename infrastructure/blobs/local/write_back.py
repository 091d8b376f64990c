"""Has the kernel write a file out long before anybody syncs it, so that a sync has little to do."""

from __future__ import annotations

import ctypes
import errno
import os

from infrastructure.libc import c_function

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # flags of sync_file_range(2)
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ESPIPE})  # as some file systems answer


# Linux alone has sync_file_range(2).
_sync_file_range = c_function(
    "sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
)


def write_out(descriptor: int, start: int, end: int) -> None:
    """Returns once these bytes are written out. They are not durable before they are synced.

    Raises OSError where that failed: the kernel tells of it once, and no sync would any more.
    """
    if _sync_file_range is None:
        return
    flags = _WAIT_BEFORE | _WRITE | _WAIT_AFTER
    if _sync_file_range(descriptor, start, end - start, flags) == 0:
        return
    if (number := ctypes.get_errno()) not in _CANNOT:
        raise OSError(number, os.strerror(number))
