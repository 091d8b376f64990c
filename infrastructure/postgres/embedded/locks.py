"""File locks that the kernel drops when their holder dies, however it dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock, waiting for it as long as it takes."""
    fd = _open(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        release(fd)


def share(path: Path) -> int:
    """Join the holders of the lock; the descriptor is the membership."""
    fd = _open(path)
    fcntl.flock(fd, fcntl.LOCK_SH)
    return fd


def is_only_holder(fd: int) -> bool:
    """True when nobody else shares the lock; it is then held exclusively."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lease(path: Path) -> int | None:
    """
    Take the lock if nobody has it.

    A process that inherits the descriptor holds the lock too, and the last of them to end
    frees it: close it after handing it on, never unlock it.
    """
    fd = _open(path)
    if is_only_holder(fd):
        return fd
    os.close(fd)
    return None


def is_free(path: Path) -> bool:
    """True when no process holds the lock."""
    fd = lease(path)
    if fd is None:
        return False
    os.close(fd)
    return True


def release(fd: int) -> None:
    """Unlock for good, also in a forked child that still has the descriptor."""
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
