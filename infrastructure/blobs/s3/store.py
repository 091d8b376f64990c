"""Blobs in a bucket of any S3."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from application.ports.blobs import BlobBusy, BlobTooShort
from infrastructure.blobs.naming import checked
from infrastructure.blobs.s3.bucket import Bucket
from infrastructure.blobs.s3.failures import told
from infrastructure.blobs.s3.inventory import PAGES, Inventory
from infrastructure.blobs.s3.locks import Lock, Locks
from infrastructure.blobs.s3.memory import Memory
from infrastructure.blobs.s3.reading import chunks_of
from infrastructure.blobs.s3.state import Whole, look, look_closely, tail_of
from infrastructure.blobs.s3.writer import S3BlobWriter

PATIENCE = 5.0  # seconds that a deletion waits for whoever is still writing
PUTS_AT_ONCE = 16
GLANCE = 0.05  # seconds between two looks whether it still is


class S3BlobStore:
    """The ports `BlobStore` and `BlobInventory`.

    Finished blobs are plain objects under the prefix, each with the name of its blob.

    A blob that is not finished can be read only while it has no part: S3 keeps the bytes of parts
    to itself until the upload is completed.
    """

    def __init__(self, bucket: Bucket, locks: Locks, *, largest: int) -> None:
        self._bucket = bucket
        self._locks = locks
        self._largest = largest
        self._memory = Memory()
        self._inventory = Inventory(bucket, locks)
        self._open: dict[str, S3BlobWriter] = {}

    async def append(self, name: str, offset: int) -> S3BlobWriter:
        lock = await self._locks.take(checked(name))
        if lock is None:
            raise BlobBusy(name)
        try:
            with told():
                found = await look_closely(self._bucket, name)
            if found.size < offset:
                raise BlobTooShort(name, found.size, offset)
        except BaseException:
            await lock.release()
            raise
        writer = S3BlobWriter(
            self._bucket,
            name,
            found,
            offset,
            lock=lock,
            memory=self._memory,
            largest=self._largest,
            closed=lambda: self._closed(name, writer),
        )
        self._open[name] = writer
        return writer

    async def size(self, name: str) -> int:
        with told():
            return (await look(self._bucket, checked(name))).size

    async def finish(self, name: str, size: int) -> None:
        """Includes what an append that is open here has written and not synced."""
        if writer := self._open.get(checked(name)):
            await writer.finish(size)
            return
        with told():
            found = await look(self._bucket, name)
            if isinstance(found.blob, Whole) and found.size == size:
                if found.tail is not None:
                    await self._bucket.delete(tail_of(name))
                return
        writer = await self.append(name, size)
        try:
            await writer.finish(size)
        finally:
            await writer.close()

    def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        return chunks_of(self._bucket, checked(name), start, end)

    async def put(self, name: str, content: bytes) -> None:
        tail = tail_of(checked(name))
        with told():
            # Acknowledged once both are done: a tail would hide the object.
            await asyncio.gather(self._bucket.delete(tail), self._bucket.put(name, content))

    async def put_many(self, blobs: Mapping[str, bytes]) -> Mapping[str, str]:
        """So many at once; the rest waits its turn, whatever one of them meets."""
        todo = iter(blobs.items())

        async def put_some() -> None:
            for name, content in todo:
                await self.put(name, content)

        await asyncio.gather(*(put_some() for _ in range(PUTS_AT_ONCE)))
        return {name: name for name in blobs}

    async def delete(self, name: str) -> None:
        """Frees the object, its tail and all parts, those that no tail names included."""
        async with self._to_ourselves(checked(name)):
            with told():
                await self._bucket.delete(tail_of(name))
                await self._bucket.delete(name)
                async for pending in self._bucket.pending(name):
                    if pending.name == name:
                        await self._bucket.abort(name, pending.upload)

    async def free_bytes(self) -> int | None:
        return None

    @property
    def parts(self) -> int:
        return PAGES

    async def stale(self, part: int, age: float) -> list[str]:
        return await self._inventory.stale(part, age)

    @asynccontextmanager
    async def _to_ourselves(self, name: str) -> AsyncIterator[Lock | None]:
        """Waits a little for a writer to let go: what it stored later would be left behind."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        lock = await self._locks.take(name)
        while lock is None and loop.time() < deadline:
            await asyncio.sleep(GLANCE)
            lock = await self._locks.take(name)
        try:
            yield lock
        finally:
            if lock is not None:
                await lock.release()

    def _closed(self, name: str, writer: S3BlobWriter) -> None:
        if self._open.get(name) is writer:
            del self._open[name]
