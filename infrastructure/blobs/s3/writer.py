"""One append to a blob in S3: parts go up as they fill, the rest is kept in the tail object."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from uuid import uuid4

import structlog

from application.errors import ApplicationError, Unavailable
from application.ports.blobs import BlobTooShort
from infrastructure.blobs.s3.assembling import assemble, send
from infrastructure.blobs.s3.beginning import begin
from infrastructure.blobs.s3.bucket import ABSENT, Bucket
from infrastructure.blobs.s3.failures import Refusal, told
from infrastructure.blobs.s3.locks import Lock
from infrastructure.blobs.s3.memory import Memory
from infrastructure.blobs.s3.parts import NO_PARTS, Parts, size_of_next
from infrastructure.blobs.s3.state import Found, Growing, State, encode, look, look_closely, tail_of

WORTHWHILE = 4  # on the way a tail is stored anew when one byte in so many of it is new,
PATIENCE = 10.0  # or when the last time is so many seconds ago

_log = structlog.get_logger(__name__)


class S3BlobWriter:
    """The port `BlobWriter`. Holds a part that fills, and one that is on its way up.

    Nothing changes in the bucket before the first write. `sync` and `checkpoint` may run while
    `write` goes on: they cover what was written before they were called.
    """

    def __init__(
        self,
        bucket: Bucket,
        name: str,
        found: Found,
        offset: int,
        *,
        lock: Lock,
        memory: Memory,
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
        self._begun = False
        self._parts = NO_PARTS
        self._going_up: asyncio.Task[Parts] | None = None
        self._ways = memory.ways
        self._rest = memory.buffer()
        self._part_size = 0
        self._tail = found.tail or ABSENT
        self._named: str | None = None  # the upload that the stored tail names
        self._over: str | None = None
        self._drop: str | None = None
        self._committed_at = 0.0
        self._turn = asyncio.Lock()

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
        """A tail is stored whole each time, so on the way only when enough of it is new.

        A slow sender would otherwise have the same megabytes stored twice a second.
        """
        new = self._size - self._durable
        waited = asyncio.get_running_loop().time() - self._committed_at
        if new * WORTHWHILE < len(self._rest) and waited < PATIENCE:
            return self._durable
        return await self.sync()

    async def finish(self, size: int) -> None:
        """Makes the blob one object of that size. Raises BlobTooShort."""
        async with self._turn:
            if size > self._size:
                raise BlobTooShort(self._name, self._size, size)
            if not self._begun:
                await self._begin()
            if size < self._size:
                await self._cut(size)
            parts = await self._arrived()
            self._require_lock()
            with told():
                async with self._ways:
                    rest = self._rest.content()
                    await assemble(self._bucket, self._name, parts, rest, self._over)
                if self._tail != ABSENT:
                    await self._bucket.delete(tail_of(self._name))
                self._named = parts.upload
                await self._drop_old()

    async def close(self) -> None:
        """Ends the append. Parts that no tail names are freed: nobody would ever find them."""
        try:
            if self._going_up is not None:
                self._going_up.cancel()
                await asyncio.wait({self._going_up})
                if not self._going_up.cancelled():
                    self._going_up.exception()  # seen: `write` or `sync` has raised it
            upload = self._parts.upload
            if upload not in (None, self._named) and self._lock.held:
                await self._bucket.abort(self._name, str(upload))
        except (Refusal, ApplicationError) as error:  # the sweeper frees them another day
            _log.warning("s3_parts_left", blob=self._name, error=str(error))
        finally:
            self._rest.close()
            self._on_close()
            await self._lock.release()

    async def _begin(self) -> None:
        with told():
            start = await begin(self._bucket, self._name, self._found, self._size)
        blob = self._found.blob
        self._named = blob.state.parts.upload if isinstance(blob, Growing) else None
        self._parts, self._going_up = start.parts, None
        self._rest.clear()
        self._rest.add(start.tail)
        self._part_size = max(size_of_next(self._parts, self._largest), len(self._rest))
        self._over, self._drop = start.over, start.drop
        self._begun = True

    async def _send_part(self) -> None:
        """Sends the full part on its way, once the one before it has arrived."""
        parts = await self._arrived()
        await self._ways.acquire()
        full = self._rest.take()
        self._going_up = asyncio.create_task(self._upload(parts, full))
        self._going_up.add_done_callback(lambda _: self._ways.release())
        then = Parts(last=parts.last + 1, size=parts.size + len(full))
        self._part_size = size_of_next(then, self._largest)

    async def _upload(self, parts: Parts, content: bytes) -> Parts:
        with told():
            if parts.upload is None:
                parts = self._parts = Parts(await self._bucket.create(self._name))
            return await send(self._bucket, self._name, parts, content)

    async def _arrived(self) -> Parts:
        """The parts, once the one that is on its way has arrived; raises what it met, each time."""
        if self._going_up is not None:
            self._parts = await asyncio.shield(self._going_up)
        return self._parts

    async def _commit(self) -> None:
        """Stores the tail, by which all bytes up to now count."""
        async with self._ways:
            size, rest, going_up = self._size, self._rest.content(), self._going_up
            parts = self._parts if going_up is None else await asyncio.shield(going_up)
            self._require_lock()
            with told():
                self._tail = await self._store(rest, State(parts, uuid4().hex, self._over))
        self._durable, self._named = size, parts.upload
        self._committed_at = asyncio.get_running_loop().time()
        with told():
            await self._drop_old()

    async def _store(self, rest: bytes, state: State) -> str:
        """Puts it in place of the tail that we know; where there is another, we were overtaken."""
        try:
            return await self._bucket.put(tail_of(self._name), rest, encode(state), self._tail)
        except Refusal as refusal:
            if not (refusal.outdated or refusal.absent):
                raise
            found = (await look(self._bucket, self._name)).blob
            if isinstance(found, Growing) and found.state.commit == state.commit:
                return found.etag  # it was ours: only the answer to the first try was lost
            raise Unavailable("another append took the blob over") from refusal

    async def _cut(self, size: int) -> None:
        """Goes back to fewer bytes than were written."""
        await self._commit()
        with told():
            self._found = await look_closely(self._bucket, self._name)
        self._size = self._durable = size
        await self._begin()

    async def _drop_old(self) -> None:
        """Frees the upload that was replaced, now that what replaces it is durable."""
        if self._drop is not None:
            await self._bucket.abort(self._name, self._drop)
            self._drop = None

    def _require_lock(self) -> None:
        if not self._lock.held:
            raise Unavailable("the lock of the blob was lost; somebody else may have it")
