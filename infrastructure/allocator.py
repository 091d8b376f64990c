"""The allocator of the C library, told to keep what was freed in one place."""

from __future__ import annotations

import ctypes
import sys

from infrastructure.libc import c_function

_ARENA_MAX = -8  # M_ARENA_MAX (mallopt(3))


def share_one_arena() -> None:
    """Has all threads allocate from one arena; before any thread is started.

    glibc gives each an arena of its own, and what was freed in one is of no use to the others: a
    thousand senders cost 15 MiB more. Python's own lock leaves little to contend for. Other
    libraries are left as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = c_function("mallopt", ctypes.c_int, ctypes.c_int)
    if mallopt is not None:
        mallopt(_ARENA_MAX, 1)
