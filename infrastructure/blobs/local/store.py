"""Blobs as files in a folder of this machine, or of one that all machines share."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import time
from typing import TypeVar
from zlib import crc32

from infrastructure.blobs.local.disk import NEW_FOLDER, make_folder, open_to_read, told
from infrastructure.blobs.local.files import (
    close_unwanted,
    delete,
    finish,
    free_bytes,
    open_to_append,
    size_of,
    stale,
)
from infrastructure.blobs.local.kernel_syncs import open_kernel_syncs
from infrastructure.blobs.local.pace import Pace
from infrastructure.blobs.local.packs.naming import packed_in
from infrastructure.blobs.local.packs.packing import Packing
from infrastructure.blobs.local.packs.store import PackedBlobs
from infrastructure.blobs.local.whole_files import replace
from infrastructure.blobs.local.writer import LocalBlobWriter
from infrastructure.blobs.naming import checked
from infrastructure.tasks import delivered

READ_CHUNK = 256 * 1024
THREADS = 8  # they wait for the disk; more of them than this only wait for each other
WRITE_OUTS = 2  # threads for windows of large files, so that the others are free meanwhile
SHARDS = 256

Result = TypeVar("Result")


class LocalBlobStore:
    """The ports `BlobStore` and `BlobInventory` on a local disk.

    `a/b/c` is kept as the file `a_b_c`, which no other name can become, in one of 256 folders.
    The folder follows from a checksum of the name: the ids in names open with the same bytes
    for everything that was uploaded in the same hour. Small blobs share files (`packs`).
    """

    def __init__(self, folder: Path, *, threads: int = THREADS, kernel_syncs: bool = True) -> None:
        """`kernel_syncs` uses them where there are any; else threads wait for the disk."""
        folder.mkdir(mode=NEW_FOLDER, parents=True, exist_ok=True)
        self._folder = folder
        self._shards = [folder / f"{number:02x}" for number in range(SHARDS)]
        self._made: set[Path] = set()  # shards known to be durable
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="blobs")
        self._outgoing = ThreadPoolExecutor(WRITE_OUTS, thread_name_prefix="write-out")
        self._writers: dict[str, LocalBlobWriter] = {}  # those that are open
        self._syncs = open_kernel_syncs() if kernel_syncs else None
        self._pace = Pace()
        packing = Packing(
            self._file, self._make_shard, threads=self._threads, syncs=self._syncs, pace=self._pace
        )
        self._packs = PackedBlobs(packing, self._file, self._threads)

    def close(self) -> None:
        """Waits for what is being written, and lets the threads go."""
        self._threads.shutdown()
        self._outgoing.shutdown()
        self._packs.close()
        if self._syncs is not None:
            self._syncs.close()

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
            pace=self._pace,
            closed=lambda: self._writers.pop(name, None),
        )
        return self._writers[name]

    async def size(self, name: str) -> int:
        if packed := packed_in(name):
            return await self._packs.size(packed)
        path = self._path(name)
        return await self._run(lambda: size_of(path))

    async def finish(self, name: str, size: int) -> None:
        path = self._path(name)
        if writer := self._writers.get(name):  # it alone may have been told of an error
            await writer.require_sound()
        await self._run(lambda: finish(name, path, size))

    async def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        if packed := packed_in(name):
            if content := await self._packs.read(packed, start, end):
                yield content
            return
        path = self._path(name)
        descriptor, _ = await self._opened(lambda: open_to_read(name, path))
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
        await self._ensure_shard(path.parent)
        loop = asyncio.get_running_loop()
        putting = loop.run_in_executor(self._threads, replace, path, content)
        with told():  # a caller that is cancelled meanwhile leaves nothing that nobody would free
            await delivered(putting, lambda _: path.unlink(missing_ok=True))

    async def put_many(self, blobs: Mapping[str, bytes]) -> Mapping[str, str]:
        return await self._packs.put({checked(name): content for name, content in blobs.items()})

    async def delete(self, name: str) -> None:
        if packed := packed_in(name):
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
        return await self._run(lambda: stale(shard, before))

    def _path(self, name: str) -> Path:
        """Where the blob is kept. Raises ValueError for a name that no caller should choose."""
        return self._file(checked(name))

    def _file(self, name: str) -> Path:
        return self._shards[crc32(name.encode()) & 0xFF] / name.replace("/", "_")

    async def _ensure_shard(self, shard: Path) -> None:
        if shard not in self._made:
            await self._run(lambda: self._make_shard(shard))

    def _make_shard(self, shard: Path) -> None:
        if shard not in self._made:
            make_folder(shard)
            self._made.add(shard)

    async def _opened(self, work: Callable[[], tuple[int, int]]) -> tuple[int, int]:
        """Opens a file in a thread; a caller that is cancelled meanwhile leaves nothing open."""
        opening = asyncio.get_running_loop().run_in_executor(self._threads, work)
        with told():
            return await delivered(opening, close_unwanted)

    async def _run(self, work: Callable[[], Result]) -> Result:
        with told():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
