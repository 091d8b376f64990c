"""Blobs as files in a folder of this machine, or of one that all machines share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, TypeVar
from zlib import crc32

from application.errors import Unavailable
from application.ports.blobs import BlobBusy, BlobTooShort
from infrastructure import files
from infrastructure.blobs.local.disk import (
    ASIDE,
    FILE_MODE,
    FOLDER_MODE,
    WritebackWindow,
    open_to_read,
    translate_os_errors,
    write_blob,
)
from infrastructure.blobs.local.kernel_sync import open_kernel_sync
from infrastructure.blobs.local.pack_writer import PackedBlobs, PackWriter
from infrastructure.blobs.local.packs import pack_id_from_file, parse_packed_name, remaining_members
from infrastructure.blobs.shared import validate_blob_name
from infrastructure.tasks import shield_result

# What is done to the file of a blob, in a thread: opened, measured, finished, freed.


def open_to_append(name: str, path: Path, offset: int) -> tuple[int, int]:
    """A descriptor that holds the file alone, at this offset, and how many bytes there are."""
    while True:
        descriptor = _open_to_write(name, path, offset)
        try:
            if not files.try_lock(descriptor):
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
        return files.open_file(path, flags, FILE_MODE)
    except FileNotFoundError:
        raise BlobTooShort(name, 0, offset) from None


def size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def close_orphaned_fd(opened: tuple[int, int]) -> None:
    os.close(opened[0])


def finish(name: str, path: Path, size: int) -> None:
    try:
        descriptor = files.open_file(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise BlobTooShort(name, 0, size) from None
    try:
        stored = os.fstat(descriptor).st_size
        if stored < size:
            raise BlobTooShort(name, stored, size)
        if stored > size:
            files.truncate(descriptor, size)
        files.sync_data(descriptor)
    finally:
        os.close(descriptor)
    files.sync_folder(path.parent)


def delete(path: Path) -> None:
    files.discard(path)
    with suppress(FileNotFoundError):  # the folder: no blob was ever stored in it
        files.sync_folder(path.parent)  # of a missing file, too: an earlier sync may have failed


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def older_than(shard: Path, before: float) -> list[str]:
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
                    files.unlink(entry.path)
                elif pack := pack_id_from_file(entry.name):
                    found += remaining_members(Path(entry.path), pack)
                else:
                    found.append(entry.name.replace("_", "/"))
    return found


# One append to a local blob: writes on the loop while the disk is quick, in a thread when not.


class LocalBlobWriter:
    """The port `BlobWriter`, on an open and locked file.

    `sync` may run while `write` goes on: it covers what was written before it was called.
    What lies beyond the offset is dropped by the first write, so that merely opening a blob
    changes nothing.
    """

    def __init__(
        self,
        descriptor: int,
        path: Path,
        offset: int,
        *,
        excess: bool,
        threads: Executor,
        outgoing: Executor,
        closed: Callable[[], object],
    ) -> None:
        """`outgoing` are threads for what may take long; `closed` is called once this is."""
        self._descriptor = descriptor
        self._path = path
        self._size = offset
        self._synced = offset  # bytes known to be durable
        self._excess = excess
        self._named = offset > 0  # whether the file's name is known to be durable
        self._threads = threads
        self._outgoing = WritebackWindow(offset, self._write_out, outgoing)
        self._on_close = closed
        self._working: set[asyncio.Future[Any]] = set()
        self._broken = False
        self._closed = False

    @property
    def has_excess(self) -> bool:
        return self._excess

    @property
    def size(self) -> int:
        return self._size

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        self._write(chunk)
        if self._outgoing.due(self._size):
            self._watch(asyncio.wrap_future(await self._outgoing.begin(self._size)))

    async def sync(self) -> int:
        size = self._size
        if size > self._synced:  # a sender that fell silent was synced before: nothing to wait for
            await self._in_thread(self._sync)
            self._synced = max(self._synced, size)
        return size

    async def checkpoint(self) -> int:
        return await self.sync()

    async def require_sound(self) -> None:
        """Raises Unavailable, StorageFull where bytes could not be written out."""
        await self._outgoing.drain()
        if self._broken:
            raise Unavailable("an earlier sync of this blob failed")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._on_close()
        self._outgoing.give_up()
        if not self._working:
            os.close(self._descriptor)
            return
        # A thread that outlived its cancelled caller still works with the descriptor: closed
        # under it, the number could already mean another file. The last one closes it.
        await asyncio.wait(self._working)

    def _write(self, chunk: bytes | bytearray | memoryview) -> None:
        with translate_os_errors():
            if self._excess:
                files.truncate(self._descriptor, self._size)
                self._excess = False
            for written in files.write_all(self._descriptor, chunk):
                self._size += written

    def _write_out(self, start: int, end: int) -> None:
        try:
            with translate_os_errors():
                files.write_out(self._descriptor, start, end)
        except BaseException:
            self._broken = True
            raise

    def _sync(self) -> None:
        if self._broken:  # the kernel reports a failed write-back once, then forgets it
            raise Unavailable("an earlier sync of this blob failed")
        try:
            with translate_os_errors():
                files.sync_data(self._descriptor)
                if not self._named:
                    files.sync_folder(self._path.parent)
                    self._named = True
        except BaseException:
            self._broken = True
            raise

    async def _in_thread(self, work: Callable[[], None]) -> None:
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._watch(future)
        await asyncio.shield(future)

    def _watch(self, future: asyncio.Future[Any]) -> None:
        """The descriptor stays open for as long as a thread works with it."""
        self._working.add(future)
        future.add_done_callback(self._worked)

    def _worked(self, future: asyncio.Future[Any]) -> None:
        self._working.discard(future)
        if not future.cancelled():
            future.exception()  # seen: the caller, if it is still there, raises it
        if self._closed and not self._working:
            os.close(self._descriptor)


READ_CHUNK_BYTES = 256 * 1024
MAX_THREADS = 8  # they wait for the disk; more of them than this only wait for each other
WRITE_BACK_THREADS = 2  # threads for windows of large files, so that the others are free meanwhile
SHARDS = 256

Result = TypeVar("Result")


class LocalBlobStore:
    """The ports `BlobStore` and `BlobInventory` on a local disk.

    `a/b/c` is kept as the file `a_b_c`, which no other name can become, in one of 256 folders.
    The folder follows from a checksum of the name: the ids in names open with the same bytes
    for everything that was uploaded in the same hour. Small blobs share files (`packs`).
    """

    def __init__(
        self, folder: Path, *, threads: int = MAX_THREADS, use_kernel_sync: bool = True
    ) -> None:
        """`use_kernel_sync` applies where the kernel offers AIO; threads sync otherwise."""
        files.make_folder(folder, FOLDER_MODE)
        self._folder = folder
        self._shards = [folder / f"{number:02x}" for number in range(SHARDS)]
        self._made: set[Path] = set()  # shards known to be durable
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="blobs")
        self._outgoing = ThreadPoolExecutor(WRITE_BACK_THREADS, thread_name_prefix="write-out")
        self._writers: dict[str, LocalBlobWriter] = {}  # those that are open
        self._kernel_sync = open_kernel_sync() if use_kernel_sync else None
        packing = PackWriter(
            self._file,
            self._make_shard,
            threads=self._threads,
            kernel_sync=self._kernel_sync,
        )
        self._packs = PackedBlobs(packing, self._file, self._threads)

    def close(self) -> None:
        """Waits for what is being written, and lets the threads go."""
        self._threads.shutdown()
        self._outgoing.shutdown()
        self._packs.close()
        if self._kernel_sync is not None:
            self._kernel_sync.close()

    async def append(self, name: str, offset: int) -> LocalBlobWriter:
        path = self._path(name)
        if offset == 0:
            await self._ensure_shard(path.parent)
        descriptor, size = await self._opened(lambda: open_to_append(name, path, offset))
        self._writers[name] = LocalBlobWriter(
            descriptor,
            path,
            offset,
            excess=size > offset,
            threads=self._threads,
            outgoing=self._outgoing,
            closed=lambda: self._writers.pop(name, None),
        )
        return self._writers[name]

    async def size(self, name: str) -> int:
        if packed := parse_packed_name(name):
            return await self._packs.size(packed)
        path = self._path(name)
        return await self._run(lambda: size_of(path))

    async def finish(self, name: str, size: int) -> None:
        path = self._path(name)
        if writer := self._writers.get(name):  # the kernel may have reported an error to it alone
            await writer.require_sound()
        await self._run(lambda: finish(name, path, size))

    async def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        if packed := parse_packed_name(name):
            if content := await self._packs.read(packed, start, end):
                yield content
            return
        path = self._path(name)
        descriptor, _ = await self._opened(lambda: open_to_read(name, path))
        try:
            while end is None or start < end:
                wanted = READ_CHUNK_BYTES if end is None else min(READ_CHUNK_BYTES, end - start)
                chunk = await self._run(lambda: os.pread(descriptor, wanted, start))  # noqa: B023
                if not chunk:
                    return
                start += len(chunk)
                yield chunk
        finally:
            os.close(descriptor)

    async def put(self, name: str, content: bytes) -> None:
        path = self._path(name)
        await self._ensure_shard(path.parent)
        loop = asyncio.get_running_loop()
        putting = loop.run_in_executor(self._threads, write_blob, path, content)
        with translate_os_errors():  # if the caller is cancelled, the file is deleted again
            await shield_result(putting, lambda _: delete(path))

    async def put_many(self, blobs: Mapping[str, bytes]) -> Mapping[str, str]:
        return await self._packs.put(
            {validate_blob_name(name): content for name, content in blobs.items()}
        )

    async def delete(self, name: str) -> None:
        if packed := parse_packed_name(name):
            await self._packs.delete(packed)
        else:
            path = self._path(name)
            await self._run(lambda: delete(path))

    async def free_bytes(self) -> int | None:
        return await self._run(lambda: free_bytes(self._folder))

    @property
    def parts(self) -> int:
        return SHARDS

    async def stale(self, part: int, age: float) -> list[str]:
        shard, before = self._shards[part], time() - age
        return await self._run(lambda: older_than(shard, before))

    def _path(self, name: str) -> Path:
        """Return the path of the blob. Raises ValueError for an invalid name."""
        return self._file(validate_blob_name(name))

    def _file(self, name: str) -> Path:
        return self._shards[crc32(name.encode()) & 0xFF] / name.replace("/", "_")

    async def _ensure_shard(self, shard: Path) -> None:
        if shard not in self._made:
            await self._run(lambda: self._make_shard(shard))

    def _make_shard(self, shard: Path) -> None:
        if shard not in self._made:
            files.make_folder(shard, FOLDER_MODE)
            self._made.add(shard)

    async def _opened(self, work: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        """Opens a file in a thread; a caller that is cancelled meanwhile leaves nothing open."""
        opening = asyncio.get_running_loop().run_in_executor(self._threads, work)
        with translate_os_errors():
            return await shield_result(opening, close_orphaned_fd)

    async def _run(self, work: Callable[[], Result]) -> Result:
        with translate_os_errors():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
