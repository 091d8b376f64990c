"""Blobs as files in a folder of this machine, or of one that all machines share."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from application.ports.blobs import BlobBusy, BlobMissing, BlobTooShort
from infrastructure.blobs.disk import (
    NEW_FILE,
    NEW_FOLDER,
    make_folder,
    sync_data,
    sync_folder,
    told,
    try_lock,
)
from infrastructure.blobs.group_sync import GroupSync
from infrastructure.blobs.local_writer import LocalBlobWriter
from infrastructure.blobs.pace import Pace
from infrastructure.blobs.whole_files import create, replace

READ_CHUNK = 256 * 1024
THREADS = 8  # they wait for the disk; more of them than this only wait for each other
MAX_NAME = 250

_NAME = re.compile(r"[a-z0-9-][a-z0-9.-]*(/[a-z0-9-][a-z0-9.-]*)*")

Result = TypeVar("Result")


class LocalBlobStore:
    """The port `BlobStore` on a local disk.

    `a/b/c` is kept as the file `a_b_c`, which no other name can become, in one of 256 folders.
    The folder follows from a checksum of the name: the ids in names open with the same bytes
    for everything that was uploaded in the same hour.
    """

    def __init__(self, folder: Path, *, threads: int = THREADS) -> None:
        folder.mkdir(mode=NEW_FOLDER, parents=True, exist_ok=True)
        self._folder = folder
        self._made: set[Path] = set()  # shards known to be durable: 256 at most
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="blobs")
        self._group = GroupSync(self._threads)
        self._pace = Pace()

    def close(self) -> None:
        """Waits for what is being written, and lets the threads go."""
        self._threads.shutdown()

    async def append(self, name: str, offset: int) -> LocalBlobWriter:
        path = self._path(name)
        descriptor, size = await self._opened(lambda: self._open(name, path, offset))
        return LocalBlobWriter(
            descriptor, path, offset, excess=size > offset, threads=self._threads, pace=self._pace
        )

    async def size(self, name: str) -> int:
        path = self._path(name)
        return await self._run(lambda: _size(path))

    async def finish(self, name: str, size: int) -> None:
        path = self._path(name)
        await self._run(lambda: _finish(name, path, size))

    async def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        path = self._path(name)
        descriptor, _ = await self._opened(lambda: _open_to_read(name, path))
        try:
            while end is None or start < end:
                wanted = READ_CHUNK if end is None else min(READ_CHUNK, end - start)
                chunk = await self._run(lambda: os.pread(descriptor, wanted, start))  # noqa: B023
                if not chunk:
                    return
                start += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    async def put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        if path.parent not in self._made:
            await self._run(lambda: self._make_shard(path.parent))
        descriptor = await self._created(path, content)
        if descriptor is None:
            await self._run(lambda: replace(path, content))
            return
        try:
            await self._group.sync(descriptor, path.parent)
        except BaseException:
            path.unlink()  # never acknowledged, and nobody else would ever free it
            raise
        finally:
            os.close(descriptor)

    async def delete(self, name: str) -> None:
        path = self._path(name)
        await self._run(lambda: _delete(path))

    async def free_bytes(self) -> int | None:
        return await self._run(lambda: _free_bytes(self._folder))

    async def _created(self, path: Path, content: bytes) -> int | None:
        """Writes a new file on the loop: small as it is, a trip to a thread would cost more."""
        if self._pace.slow:
            return await self._run(lambda: create(path, content))
        with told(), self._pace.measured():
            return create(path, content)

    def _path(self, name: str) -> Path:
        """Where the blob is kept. Raises ValueError for a name that no caller should choose."""
        if len(name) > MAX_NAME or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a blob")
        shard = f"{crc32(name.encode()) & 0xFF:02x}"
        return self._folder / shard / name.replace("/", "_")

    def _open(self, name: str, path: Path, offset: int) -> tuple[int, int]:
        """A descriptor that holds the file alone, and how many bytes there are."""
        while True:
            descriptor = self._open_once(name, path, offset)
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

    def _open_once(self, name: str, path: Path, offset: int) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        if offset == 0:
            self._make_shard(path.parent)
            flags |= os.O_CREAT
        try:
            return os.open(path, flags, NEW_FILE)
        except FileNotFoundError:
            raise BlobTooShort(name, 0, offset) from None

    def _make_shard(self, shard: Path) -> None:
        if shard not in self._made:
            make_folder(shard)
            self._made.add(shard)

    async def _opened(self, work: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        """Opens a file in a thread; a caller that is cancelled meanwhile leaves nothing open."""
        opening = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            with told():
                return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise

    async def _run(self, work: Callable[[], Result]) -> Result:
        with told():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _close_unwanted(opening: asyncio.Future[tuple[int, int]]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        os.close(opening.result()[0])


def _open_to_read(name: str, path: Path) -> tuple[int, int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return descriptor, os.fstat(descriptor).st_size
    except FileNotFoundError:
        raise BlobMissing(f"no blob {name} is stored") from None


def _finish(name: str, path: Path, size: int) -> None:
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


def _delete(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
        sync_folder(path.parent)


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
