"""Asks the kernel to begin writing a file out, long before anybody waits for that."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: begin with the pages that are dirty, wait for none
_TO_THE_END = 0


def _found() -> Callable[[int], None]:
    """Linux has sync_file_range(2), and Python no name for it; elsewhere nothing is begun early."""
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError, TypeError):
        return lambda descriptor: None
    call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)

    def begin(descriptor: int) -> None:
        # Of a hint nobody wants to know that it failed: the sync that follows tells of errors.
        call(descriptor, 0, _TO_THE_END, _WRITE)

    return begin


begin_write_back = _found()
