"""The few things we ask of a file system, with their errors told in the words of the ports."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from application.errors import StorageFull, Unavailable
from application.ports.blobs import BlobMissing

NEW_FILE = 0o600
NEW_FOLDER = 0o700

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})

sync_data = getattr(os, "fdatasync", os.fsync)
"""fdatasync makes the bytes and the size durable, which is all a blob has; macOS lacks it."""


class told:
    """Raises StorageFull for a full disk or quota, Unavailable for any other error of the disk.

    `with told(): ...`; every write passes through here, so that it is no generator.
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
    folder.mkdir(mode=NEW_FOLDER, exist_ok=True)
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
    """Writes the chunk, and says after each write how many bytes were taken."""
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
