"""File system operations of the local store, with errors translated to those of the ports."""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from uuid import uuid4

from application.errors import StorageFull, Unavailable
from application.ports.blobs import BlobMissing
from infrastructure import files

FILE_MODE = 0o600
FOLDER_MODE = 0o700

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


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


def write_blob(path: Path, content: bytes) -> None:
    """Replace the content of a file atomically. The draft has a name that no blob can have."""
    draft = path.with_name(f"{path.name[:200]}{ASIDE}{uuid4().hex}")
    files.write_file_atomically(path, content, draft=draft)
