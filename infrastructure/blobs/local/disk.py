"""File system operations of the local store, with errors translated to those of the ports."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from uuid import uuid4

from application.errors import StorageFull, Unavailable
from application.ports.blobs import BlobMissing
from infrastructure.platform import libc_function

FILE_MODE = 0o600
FOLDER_MODE = 0o700

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

sync_data = getattr(os, "fdatasync", os.fsync)
"""fdatasync makes the bytes and the size durable, which is all a blob has; macOS lacks it."""


class translate_os_errors:
    """Context manager: raise StorageFull for a full disk or quota, Unavailable for other errors.

    A class rather than a generator, because every write passes through it.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in _NO_ROOM:
            raise StorageFull("there is no room for the bytes") from error
        raise Unavailable(f"the blob store failed: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: without it a crash may lose a file that was synced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Creates the folder, and makes its name durable; one that exists is fine."""
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
    sync_folder(folder.parent)


def try_lock(descriptor: int) -> bool:
    """Takes the file for this open descriptor alone; False where another one, anywhere, has it.

    The kernel gives the lock back when the descriptor is closed, also by kill -9.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def write_all(descriptor: int, chunk: bytes | bytearray | memoryview) -> Iterator[int]:
    """Write the chunk; yield the number of bytes after each write."""
    written = os.write(descriptor, chunk)
    yield written
    if written < len(chunk):
        rest = memoryview(chunk)[written:]
        while rest:
            written = os.write(descriptor, rest)
            yield written
            rest = rest[written:]


def open_to_read(name: str, path: Path) -> tuple[int, int]:
    """Open the file of a blob; return its descriptor and size. Raises BlobMissing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return descriptor, os.fstat(descriptor).st_size
    except FileNotFoundError:
        raise BlobMissing(f"no blob {name} is stored") from None


# Bytes of a fast sender are written back while more arrive, so that a sync has little to write.
#
# Otherwise a sync, and a takeover of the upload, would wait until the disk has all bytes since
# the last checkpoint, which may be hundreds of megabytes.

WRITE_BACK_WINDOW = 4 * 1024 * 1024  # bytes that are written out together
MAX_CONCURRENT_WRITE_BACKS = 2  # windows of one blob; the next one waits for the first of them


class WritebackWindow:
    """The windows of one open blob, from `offset` on."""

    def __init__(
        self, offset: int, write_out: Callable[[int, int], None], threads: Executor
    ) -> None:
        """`write_out` is called in a thread, with the first byte of a window and the one behind."""
        self._end = offset
        self._write_out = write_out
        self._threads = threads
        self._windows: deque[Future[None]] = deque()

    def due(self, size: int) -> bool:
        """Return whether a blob of this size has a window that is not being written out."""
        return size - self._end >= WRITE_BACK_WINDOW

    async def begin(self, size: int) -> Future[None]:
        """Has everything up to `size` written out; raises what an earlier window met."""
        start, self._end = self._end, size
        if len(self._windows) == MAX_CONCURRENT_WRITE_BACKS:
            await _over(self._windows.popleft())
        window = self._threads.submit(self._write_out, start, size)
        self._windows.append(window)
        return window

    async def drain(self) -> None:
        """Wait until all windows are written out, and raise the error of one that failed."""
        while self._windows:
            await _over(self._windows.popleft())

    def give_up(self) -> None:
        """Those that no thread has begun with are not wanted any more."""
        for window in self._windows:
            window.cancel()


async def _over(window: Future[None]) -> None:
    await asyncio.shield(asyncio.wrap_future(window))


# A file written in one go: aside, and then in place of any other of its name.

ASIDE = "~"  # in the name of a file that is to replace another, and of no blob

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically: a reader sees the old or the new content.

    The temporary file has a name that no blob can have.
    """
    aside = path.with_name(f"{path.name[:200]}{ASIDE}{uuid4().hex}")
    descriptor = os.open(aside, _FLAGS, FILE_MODE)
    try:
        for _ in write_all(descriptor, content):
            pass
        sync_data(descriptor)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


# Start of writeback by the kernel long before a sync, so that the sync has little to write.

_WAIT_BEFORE, _WRITE, _WAIT_AFTER = 1, 2, 4  # flags of sync_file_range(2)
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.ESPIPE})  # as some file systems answer


# Linux alone has sync_file_range(2).
_sync_file_range = libc_function(
    "sync_file_range", ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
)


def sync_file_range(descriptor: int, start: int, end: int) -> None:
    """Write these bytes out and wait. They are not durable before they are synced.

    Raises OSError: the kernel reports a write error once, and no later sync would.
    """
    if _sync_file_range is None:
        return
    flags = _WAIT_BEFORE | _WRITE | _WAIT_AFTER
    if _sync_file_range(descriptor, start, end - start, flags) == 0:
        return
    if (number := ctypes.get_errno()) not in _CANNOT:
        raise OSError(number, os.strerror(number))
