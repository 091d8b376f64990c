"""One append to a blob in S3: parts go up as they fill, the rest is kept in the tail object."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

import msgspec
import structlog

from application.errors import ApplicationError, StorageFull, Unavailable
from application.ports.blobs import BlobTooShort
from infrastructure.blobs.s3.client import (
    ABSENT,
    MAX_PART_BYTES,
    MAX_PARTS,
    MIN_PART_BYTES,
    NO_PARTS,
    Bucket,
    Parts,
    S3Error,
    next_part_size,
    split_ranges,
    translate_s3_errors,
)
from infrastructure.blobs.s3.locks import Lock
from infrastructure.blobs.s3.state import (
    BlobStat,
    BufferPool,
    CompleteBlob,
    IncompleteBlob,
    TailMetadata,
    encode,
    stat,
    stat_with_parts,
    tail_key,
)

# How parts are sent, and become one object.


async def upload_part(bucket: Bucket, name: str, parts: Parts, content: bytes) -> Parts:
    """Store one more part. Raises StorageFull at the maximum number of parts."""
    if parts.last >= MAX_PARTS:
        raise StorageFull(f"a blob has at most {MAX_PARTS:,} parts")
    assert parts.upload is not None
    return parts.plus(await bucket.upload(name, parts.upload, parts.last + 1, content))


async def complete(bucket: Bucket, name: str, parts: Parts, rest: bytes, over: str | None) -> None:
    """Join parts and rest into one object; a blob without a full part is stored by PUT.

    Raises BlobTooShort if the stored parts are not those that were sent.
    """
    if parts.upload is None:
        await bucket.put(name, rest)
        return
    if rest:
        parts = await upload_part(bucket, name, parts, rest)
    listed = await bucket.parts(name, str(parts.upload))
    if listed is not None and parts.prefixes(listed) is None:
        raise BlobTooShort(name, 0, parts.size)
    try:
        await bucket.complete(name, str(parts.upload), parts.counted(listed or []))
    except S3Error as refusal:
        if not refusal.absent:
            raise
        # Completed by a first try whose answer was lost, or gone for good?
        found = await bucket.head(name)
        if found is None or found.size != parts.size or found.etag == over:
            raise BlobTooShort(name, 0, parts.size) from refusal


# Where an append begins: what is kept of the bytes before its offset, and how.
#
# S3 can neither shorten an object nor read the parts of an upload that is not completed. So bytes
# before an offset inside a part are got at by completing the upload and copying from the object,
# within the store. That is rare: after a crash between storing and recording, or where bytes that
# proved bad are thrown away.

COPY_PART_BYTES = MAX_PART_BYTES // 5  # bytes of one copy inside the store, which takes a while


class ResumePoint(msgspec.Struct, frozen=True):
    """Parts and tail bytes up to the offset.

    `over` is the finished object that is being replaced; `drop` an upload to abort as soon as
    what replaces it is durable.
    """

    parts: Parts
    tail: bytes
    over: str | None = None
    drop: str | None = None


async def prepare_resume(bucket: Bucket, name: str, found: BlobStat, offset: int) -> ResumePoint:
    """Read or copy the bytes before the offset, all of which are known to be stored."""
    blob = found.blob
    if isinstance(blob, IncompleteBlob):
        return await _resumed(bucket, name, found, blob, offset)
    if blob is None or offset == 0:
        return ResumePoint(NO_PARTS, b"", blob.etag if blob else None)
    return await _reopened(bucket, name, blob, offset)


async def read_range(bucket: Bucket, name: str, start: int, end: int, etag: str) -> bytes:
    """Return a few bytes of an object. Raises S3Error if the object was replaced."""
    if start >= end:
        return b""
    body, _ = await bucket.get(name, start, end, etag)
    async with body:
        return bytes(await body.read())


async def _resumed(
    bucket: Bucket, name: str, found: BlobStat, blob: IncompleteBlob, offset: int
) -> ResumePoint:
    parts, over = blob.state.parts, blob.state.over
    if offset == 0:
        return ResumePoint(NO_PARTS, b"", over, parts.upload)
    used = max((part.number for part in found.listed), default=0)
    if offset >= parts.size:
        tail = await read_range(bucket, tail_key(name), 0, offset - parts.size, blob.etag)
        return ResumePoint(parts.after(used), tail, over)
    for fewer in parts.prefixes(found.listed) or []:
        if fewer.size == offset:
            return ResumePoint(fewer.after(used), b"", over)
    return await _reopened(bucket, name, await _completed(bucket, name, found, parts), offset)


async def _completed(bucket: Bucket, name: str, found: BlobStat, parts: Parts) -> CompleteBlob:
    """Join the parts into one object; delete the tail, which is beyond the offset."""
    await bucket.complete(name, str(parts.upload), parts.counted(found.listed))
    blob = (await stat(bucket, name)).blob
    if not isinstance(blob, CompleteBlob):
        raise S3Error("NoSuchKey", 404, f"the parts of {name} are gone")
    return blob


async def _reopened(bucket: Bucket, name: str, blob: CompleteBlob, offset: int) -> ResumePoint:
    if offset < MIN_PART_BYTES:
        return ResumePoint(
            NO_PARTS, await read_range(bucket, name, 0, offset, blob.etag), blob.etag
        )
    parts = Parts(await bucket.create(name))
    assert parts.upload is not None
    try:
        for number, (start, end) in enumerate(split_ranges(offset, COPY_PART_BYTES), 1):
            parts = parts.plus(
                await bucket.copy(name, str(parts.upload), number, start, end, blob.etag)
            )
    except BaseException:
        await bucket.abort(name, str(parts.upload))
        raise
    return ResumePoint(parts, b"", blob.etag)


TAIL_REWRITE_FACTOR = 4  # on the way a tail is stored anew when one byte in so many of it is new,
TAIL_REWRITE_INTERVAL = 10.0  # or when the last time is so many seconds ago

_log = structlog.get_logger(__name__)


class S3BlobWriter:
    """The port `BlobWriter`. Holds one part that fills and one that is being sent.

    Nothing changes in the bucket before the first write. `sync` and `checkpoint` may run during
    `write`: they cover the bytes that were written before they were called.
    """

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        found: BlobStat,
        offset: int,
        *,
        lock: Lock,
        memory: BufferPool,
        largest: int,
        closed: Callable[[], None],
    ) -> None:
        self._bucket = bucket
        self._name = name
        self._found = found
        self._size = offset
        self._durable = offset
        self._lock = lock
        self._largest = largest
        self._on_close = closed
        self._has_excess = found.size > offset
        self._begun = False
        self._parts = NO_PARTS
        self._going_up: asyncio.Task[Parts] | None = None
        self._upload_slots = memory.upload_slots
        self._rest = memory.buffer()
        self._part_size = 0
        self._tail = found.tail or ABSENT
        self._named: str | None = None  # the upload that the stored tail names
        self._maybe_named: str | None = None  # the same, if the answer to its storing was lost
        self._over: str | None = None
        self._drop: str | None = None
        self._committed_at = 0.0
        self._turn = asyncio.Lock()

    @property
    def has_excess(self) -> bool:
        return self._has_excess and not self._begun

    @property
    def size(self) -> int:
        return self._size

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        if not self._begun:
            await self._begin()
        view = memoryview(chunk)
        while len(view) >= (room := self._part_size - len(self._rest)):
            self._rest.add(view[:room])
            self._size += room
            view = view[room:]
            await self._send_part()
        self._rest.add(view)
        self._size += len(view)

    async def sync(self) -> int:
        async with self._turn:
            if self._begun and self._durable < self._size:
                await self._commit()
            return self._durable

    async def checkpoint(self) -> int:
        """Store the tail if enough of it is new, because it is always stored as a whole.

        A slow sender would otherwise have the same megabytes stored twice a second.
        """
        new = self._size - self._durable
        waited = asyncio.get_running_loop().time() - self._committed_at
        if new * TAIL_REWRITE_FACTOR < len(self._rest) and waited < TAIL_REWRITE_INTERVAL:
            return self._durable
        return await self.sync()

    async def finish(self, size: int) -> None:
        """Make the blob one object of that size. Raises BlobTooShort."""
        async with self._turn:
            if size > self._size:
                raise BlobTooShort(self._name, self._size, size)
            if not self._begun:
                await self._begin()
            if size < self._size:
                await self._cut(size)
            parts = await self._arrived()
            self._require_lock()
            with translate_s3_errors():
                async with self._upload_slots:
                    rest = self._rest.content()
                    await complete(self._bucket, self._name, parts, rest, self._over)
                if self._tail != ABSENT:
                    await self._bucket.delete(tail_key(self._name))
                self._named = parts.upload
                await self._drop_old()

    async def close(self) -> None:
        """End the append. Delete parts that no tail lists."""
        try:
            if self._going_up is not None:
                self._going_up.cancel()
                await asyncio.wait({self._going_up})
                if not self._going_up.cancelled():
                    self._going_up.exception()  # seen: `write` or `sync` has raised it
            upload = self._parts.upload
            if upload not in (None, self._named, self._maybe_named) and self._lock.is_held:
                await self._bucket.abort(self._name, str(upload))
        except (S3Error, ApplicationError) as error:  # the sweeper frees them another day
            _log.warning("s3_parts_left", blob=self._name, error=str(error))
        finally:
            self._rest.close()
            self._on_close()
            await self._lock.release()

    async def _begin(self) -> None:
        with translate_s3_errors():
            start = await prepare_resume(self._bucket, self._name, self._found, self._size)
        blob = self._found.blob
        self._named = blob.state.parts.upload if isinstance(blob, IncompleteBlob) else None
        self._parts, self._going_up = start.parts, None
        self._rest.clear()
        self._rest.add(start.tail)
        self._part_size = max(next_part_size(self._parts, self._largest), len(self._rest))
        self._over, self._drop = start.over, start.drop
        self._begun = True

    async def _send_part(self) -> None:
        """Begin to send the full part, once the one before it was stored."""
        parts = await self._arrived()
        await self._upload_slots.acquire()
        full = self._rest.take()
        self._going_up = asyncio.create_task(self._upload(parts, full))
        self._going_up.add_done_callback(lambda _: self._upload_slots.release())
        then = Parts(last=parts.last + 1, size=parts.size + len(full))
        self._part_size = next_part_size(then, self._largest)

    async def _upload(self, parts: Parts, content: bytes) -> Parts:
        with translate_s3_errors():
            if parts.upload is None:
                parts = self._parts = Parts(await self._bucket.create(self._name))
            return await upload_part(self._bucket, self._name, parts, content)

    async def _arrived(self) -> Parts:
        """Return the parts once the one being sent is stored; raise its error each time."""
        if self._going_up is not None:
            self._parts = await asyncio.shield(self._going_up)
        return self._parts

    async def _commit(self) -> None:
        """Store the tail, which makes all bytes up to now part of the blob."""
        async with self._upload_slots:
            size, rest, going_up = self._size, self._rest.content(), self._going_up
            parts = self._parts if going_up is None else await asyncio.shield(going_up)
            self._require_lock()
            self._maybe_named = parts.upload
            with translate_s3_errors():
                self._tail = await self._store(rest, TailMetadata(parts, uuid4().hex, self._over))
        self._durable, self._named = size, parts.upload
        self._committed_at = asyncio.get_running_loop().time()
        with translate_s3_errors():
            await self._drop_old()

    async def _store(self, rest: bytes, state: TailMetadata) -> str:
        """Replace the known tail; another tail means that another writer has taken over."""
        try:
            return await self._bucket.put(tail_key(self._name), rest, encode(state), self._tail)
        except S3Error as refusal:
            if not (refusal.outdated or refusal.absent):
                raise
            found = (await stat(self._bucket, self._name)).blob
            if isinstance(found, IncompleteBlob) and found.state.commit == state.commit:
                return found.etag  # it was ours: only the answer to the first try was lost
            raise Unavailable("another append took the blob over") from refusal

    async def _cut(self, size: int) -> None:
        """Drop written bytes beyond `size`."""
        await self._commit()
        with translate_s3_errors():
            self._found = await stat_with_parts(self._bucket, self._name)
        self._size = self._durable = size
        await self._begin()

    async def _drop_old(self) -> None:
        """Delete the upload that was replaced, now that its replacement is durable."""
        if self._drop is not None:
            await self._bucket.abort(self._name, self._drop)
            self._drop = None

    def _require_lock(self) -> None:
        if not self._lock.is_held:
            raise Unavailable("the lock of the blob was lost; another process may hold it")
