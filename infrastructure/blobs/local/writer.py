"""One append to a local blob: writes on the loop while the disk is quick, in a thread when not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from time import monotonic
from typing import Any

from application.errors import Unavailable
from infrastructure.blobs.local.disk import sync_data, sync_folder, told, write_all
from infrastructure.blobs.local.outgoing import Outgoing
from infrastructure.blobs.local.pace import Pace
from infrastructure.blobs.local.write_back import write_out


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
        pace: Pace,
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
        self._outgoing = Outgoing(offset, self._write_out, outgoing)
        self._pace = pace
        self._on_close = closed
        self._working: set[asyncio.Future[Any]] = set()
        self._broken = False
        self._closed = False

    @property
    def size(self) -> int:
        return self._size

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        if self._pace.slow:
            await self._in_thread(lambda: self._write(chunk))
        else:
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
        await self._outgoing.settled()
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
        began = monotonic()
        with told():
            if self._excess:
                os.ftruncate(self._descriptor, self._size)
                self._excess = False
            for written in write_all(self._descriptor, chunk):
                self._size += written
        self._pace.took_since(began)

    def _write_out(self, start: int, end: int) -> None:
        try:
            with told():
                write_out(self._descriptor, start, end)
        except BaseException:
            self._broken = True
            raise

    def _sync(self) -> None:
        if self._broken:  # the kernel reports a failed write-back once, then forgets it
            raise Unavailable("an earlier sync of this blob failed")
        try:
            with told():
                sync_data(self._descriptor)
                if not self._named:
                    sync_folder(self._path.parent)
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
