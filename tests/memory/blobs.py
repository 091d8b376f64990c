"""Blob store in memory: the ports `BlobStore` and `BlobInventory`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from zlib import crc32

import msgspec

from application.ports.blobs import BlobBusy, BlobMissing, BlobTooShort
from infrastructure.blobs.shared import validate_blob_name
from tests.memory.database import Wire

PARTS = 4
CHUNK = 64 * 1024


class StoredBlob(msgspec.Struct):
    """Bytes of a blob: of `content`, the first `durable` bytes outlive the power."""

    content: bytearray
    written_at: float
    durable: int = 0
    writer: MemoryBlobWriter | None = None


class Disk:
    """Bytes that all processes share."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.blobs: dict[str, StoredBlob] = {}
        self.clock = clock or (lambda: asyncio.get_running_loop().time())


class MemoryBlobStore:
    """Blob store of one process. The wire raises OSError where it fails."""

    def __init__(self, disk: Disk | None = None, wire: Wire | None = None) -> None:
        self._disk = disk or Disk()
        self._wire = wire or Wire()
        self._writers: list[MemoryBlobWriter] = []

    def lose_power(self, keep: Callable[[int, int], int]) -> None:
        """End every append of this process; of each, `keep(durable, size)` bytes are left."""
        for writer in self._writers:
            blob = writer.blob
            if blob.writer is writer:
                blob.writer = None
                del blob.content[keep(min(blob.durable, len(blob.content)), len(blob.content)) :]

    async def append(self, name: str, offset: int) -> MemoryBlobWriter:
        validate_blob_name(name)
        await self._wire.request("blob.append")
        blobs = self._disk.blobs
        blob = blobs.get(name)
        if blob is None:
            if offset:
                raise BlobTooShort(name, 0, offset)
            blob = blobs[name] = StoredBlob(bytearray(), self._disk.clock())
        if blob.writer is not None:
            raise BlobBusy(name)
        if len(blob.content) < offset:
            raise BlobTooShort(name, len(blob.content), offset)
        writer = blob.writer = MemoryBlobWriter(self._disk, blob, offset, self._wire)
        self._writers.append(writer)
        return writer

    async def size(self, name: str) -> int:
        await self._wire.request("blob.size")
        blob = self._disk.blobs.get(name)
        return 0 if blob is None else len(blob.content)

    async def finish(self, name: str, size: int) -> None:
        await self._wire.request("blob.finish")
        blob = self._disk.blobs.get(name)
        stored = 0 if blob is None else len(blob.content)
        if blob is None or stored < size:
            raise BlobTooShort(name, stored, size)
        del blob.content[size:]
        blob.durable = size
        await self._wire.response("blob.finish")

    async def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        await self._wire.request("blob.read")
        blob = self._disk.blobs.get(name)
        if blob is None:
            raise BlobMissing(name)
        content = bytes(blob.content[start:end])
        for at in range(0, len(content), CHUNK):
            yield content[at : at + CHUNK]

    async def put(self, name: str, content: bytes) -> None:
        validate_blob_name(name)
        await self._put(name, content)

    async def put_many(self, blobs: Mapping[str, bytes]) -> Mapping[str, str]:
        for name in blobs:
            validate_blob_name(name)
        for name, content in blobs.items():
            await self._put(f"{name}@memory", content)
        return {name: f"{name}@memory" for name in blobs}

    async def delete(self, name: str) -> None:
        await self._wire.request("blob.delete")
        self._disk.blobs.pop(name, None)
        await self._wire.response("blob.delete")

    async def free_bytes(self) -> int | None:
        return None

    @property
    def parts(self) -> int:
        return PARTS

    async def stale(self, part: int, age: float) -> Sequence[str]:
        await self._wire.request("blob.stale")
        before = self._disk.clock() - age
        return sorted(
            name
            for name, blob in self._disk.blobs.items()
            if crc32(name.encode()) % PARTS == part and blob.written_at < before
        )

    async def _put(self, name: str, content: bytes) -> None:
        await self._wire.request("blob.put")
        self._disk.blobs[name] = StoredBlob(bytearray(content), self._disk.clock(), len(content))
        await self._wire.response("blob.put")


class MemoryBlobWriter:
    """Open append to a blob; what lies beyond the offset goes with the first write."""

    def __init__(self, disk: Disk, blob: StoredBlob, offset: int, wire: Wire) -> None:
        self.blob = blob
        self._disk = disk
        self._wire = wire
        self._size = offset

    @property
    def size(self) -> int:
        return self._size

    @property
    def has_excess(self) -> bool:
        return len(self.blob.content) > self._size

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        await self._wire.request("blob.write")
        blob = self.blob
        del blob.content[self._size :]
        blob.durable = min(blob.durable, self._size)
        blob.content += chunk
        blob.written_at = self._disk.clock()
        self._size += len(chunk)

    async def sync(self) -> int:
        size = self._size
        await self._wire.request("blob.sync")
        self.blob.durable = max(self.blob.durable, size)
        await self._wire.response("blob.sync")
        return self._size

    async def checkpoint(self) -> int:
        size = self._size
        await self._wire.request("blob.checkpoint")
        self.blob.durable = max(self.blob.durable, size)
        return size

    async def close(self) -> None:
        if self.blob.writer is self:
            self.blob.writer = None
