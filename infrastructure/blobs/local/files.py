"""What is done to the file of a blob, in a thread: opened, measured, finished, freed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from application.ports.blobs import BlobBusy, BlobTooShort
from infrastructure.blobs.local.disk import NEW_FILE, sync_data, sync_folder, try_lock
from infrastructure.blobs.local.packs.freeing import left_in
from infrastructure.blobs.local.packs.naming import pack_of
from infrastructure.blobs.local.whole_files import ASIDE


def open_to_append(name: str, path: Path, offset: int) -> tuple[int, int]:
    """A descriptor that holds the file alone, at this offset, and how many bytes there are."""
    while True:
        descriptor = _open_to_write(name, path, offset)
        try:
            if not try_lock(descriptor):
                raise BlobBusy(name)
            found = os.fstat(descriptor)
            if found.st_size < offset:
                raise BlobTooShort(name, found.st_size, offset)
            os.lseek(descriptor, offset, os.SEEK_SET)
        except BaseException:
            os.close(descriptor)
            raise
        if found.st_nlink:
            return descriptor, found.st_size
        os.close(descriptor)  # deleted between being opened and being locked


def _open_to_write(name: str, path: Path, offset: int) -> int:
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if offset else os.O_CREAT)
    try:
        return os.open(path, flags, NEW_FILE)
    except FileNotFoundError:
        raise BlobTooShort(name, 0, offset) from None


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def close_unwanted(opened: tuple[int, int]) -> None:
    os.close(opened[0])


def finish(name: str, path: Path, size: int) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise BlobTooShort(name, 0, size) from None
    try:
        stored = os.fstat(descriptor).st_size
        if stored < size:
            raise BlobTooShort(name, stored, size)
        if stored > size:
            os.ftruncate(descriptor, size)
        sync_data(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def delete(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def stale(shard: Path, before: float) -> list[str]:
    """Names of the blobs in a shard whose files are older than `before`, in seconds since 1970.

    A file put aside, to replace another, that is as old was left by a crash: it goes. So does
    a pack with nothing left in it.
    """
    found: list[str] = []
    with suppress(FileNotFoundError), os.scandir(shard) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # freed meanwhile
                if entry.stat(follow_symlinks=False).st_mtime >= before:
                    continue
                if ASIDE in entry.name:
                    os.unlink(entry.path)
                elif pack := pack_of(entry.name):
                    found += left_in(Path(entry.path), pack)
                else:
                    found.append(entry.name.replace("_", "/"))
    return found
