"""Operations that change, lock or sync files and folders.

Everything that is to survive a power loss goes through this module. Callers name it
(`files.sync_data(descriptor)`), so that `tests/power_loss.py` can substitute its functions, record
what was asked of the disk, and derive the states that it may be in after a power loss.

What POSIX promises, and what the rest of the product relies on: bytes are durable after `sync` or
`sync_data` of their file, names after `sync_folder` of their folder, and nothing else is durable.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from infrastructure.platform import libc_function

if sys.platform != "win32":
    import fcntl

    write_at = os.pwrite

PRIVATE_FILE_MODE = 0o600  # mode of a file that only its owner can open
PRIVATE_FOLDER_MODE = 0o700

# Names and contents. Each is the function of the kernel itself: no call is added to a hot path.

open_file = os.open
write = os.write
truncate = os.truncate
link = os.link
rename = os.replace  # also on Windows, where os.rename replaces nothing
unlink = os.unlink
symlink = os.symlink
mkdir = os.mkdir
rmdir = os.rmdir
remove_tree = shutil.rmtree

# What makes them durable.

sync = os.fsync
sync_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
"""fdatasync makes the bytes and the size durable, which is all a blob has; macOS lacks it."""


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable. Windows, where a folder cannot be opened, does so itself.

    Raises OSError.
    """
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # flags of sync_file_range(2)
_CANNOT_WRITE_OUT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ESPIPE})

# Linux alone has sync_file_range(2).
_sync_file_range = libc_function(
    "sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
)


def write_out(descriptor: int, start: int, end: int) -> None:
    """Write these bytes out and wait. They are not durable before they are synced.

    Raises OSError: the kernel reports a write error once, and no later sync would.
    """
    if _sync_file_range is None:
        return
    flags = _WAIT_BEFORE | _WRITE | _WAIT_AFTER
    if _sync_file_range(descriptor, start, end - start, flags) == 0:
        return
    if (number := ctypes.get_errno()) not in _CANNOT_WRITE_OUT:
        raise OSError(number, os.strerror(number))


_PUNCH_HOLE = 0x02 | 0x01  # and keep the size of the file (fallocate(2))
_CANNOT_PUNCH = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})

_fallocate = (
    libc_function("fallocate", ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if ctypes.sizeof(ctypes.c_long) == ctypes.sizeof(ctypes.c_int64)  # as wide as its offsets
    else None
)


def punch_hole(descriptor: int, start: int, length: int) -> bool:
    """Free the blocks of these bytes, which then read as zeros.

    Returns False if the file system cannot. Raises OSError.
    """
    if _fallocate is None:
        return False
    if _fallocate(descriptor, _PUNCH_HOLE, start, length) == 0:
        return True
    if (number := ctypes.get_errno()) not in _CANNOT_PUNCH:
        raise OSError(number, os.strerror(number))
    return False


# Locks of open descriptors. The kernel releases them when the descriptor closes, also by kill -9.


def try_lock(descriptor: int) -> bool:
    """Lock the file exclusively for this open descriptor; False if another one holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(descriptor: int) -> None:
    """Lock the file exclusively, waiting as long as it takes."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def lock_shared(descriptor: int) -> None:
    """Share the lock of the file, waiting as long as it takes."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def unlock(descriptor: int) -> None:
    """Release the lock, also for processes that inherited the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


# What is built from them.


def write_all(descriptor: int, chunk: bytes | bytearray | memoryview) -> Iterator[int]:
    """Write the chunk; yield the number of bytes after each write."""
    written = write(descriptor, chunk)
    yield written
    if written < len(chunk):
        rest = memoryview(chunk)[written:]
        while rest:
            written = write(descriptor, rest)
            yield written
            rest = rest[written:]


def discard(file: Path) -> None:
    """Delete the file if it exists. A power loss may bring it back until its folder is synced."""
    with suppress(FileNotFoundError):
        unlink(file)


def make_folder(folder: Path, mode: int = PRIVATE_FOLDER_MODE) -> bool:
    """Create the folder and those above it, durably. Returns False if it exists. Raises OSError."""
    if not folder.parent.is_dir():
        make_folder(folder.parent, 0o777)  # less the umask, as `mkdir -p` does
    try:
        mkdir(folder, mode)
    except FileExistsError:
        if not folder.is_dir():
            raise
        # The process that created it may have been killed before the name was durable. We may not
        # be allowed to open the folder above: then its owner created this one for us.
        with suppress(PermissionError):
            sync_folder(folder.parent)
        return False
    sync_folder(folder.parent)
    return True


def write_file_atomically(
    file: Path,
    content: bytes,
    *,
    mode: int = PRIVATE_FILE_MODE,
    replace: bool = True,
    draft: Path | None = None,
) -> bool:
    """Write a file durably, with its name: readers find all of the content or none of it.

    Returns False if the file exists and `replace` is false. No other user can open the file before
    it has its final mode. A missing folder is made for its owner alone. The content is
    written to `draft` first, in the same folder. Raises OSError.
    """
    if not file.parent.is_dir():
        make_folder(file.parent)
    draft = draft or file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        descriptor = open_file(draft, _NEW_FILE, PRIVATE_FILE_MODE)
        try:
            for _ in write_all(descriptor, content):
                pass
            if mode != PRIVATE_FILE_MODE:
                os.chmod(draft, mode)
            sync(descriptor)
        finally:
            os.close(descriptor)
        written = _rename(draft, file) if replace else _link_new(draft, file)
    except BaseException:
        discard(draft)
        raise
    sync_folder(file.parent)  # also if it exists: the caller relies on what another process wrote
    return written


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)


def _rename(draft: Path, file: Path) -> bool:
    rename(draft, file)
    return True


def _link_new(draft: Path, file: Path) -> bool:
    try:
        link(draft, file)
    except FileExistsError:
        return False
    finally:
        unlink(draft)
    return True
