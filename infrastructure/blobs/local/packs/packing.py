"""Small blobs as they come: those that arrive during one sync of the disk share the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from time import monotonic

import msgspec

from application.errors import ApplicationError, Unavailable
from infrastructure.blobs.local.disk import sync_data, told
from infrastructure.blobs.local.kernel_syncs import KernelSyncs
from infrastructure.blobs.local.pace import Pace
from infrastructure.blobs.local.packs.appending import Pack
from infrastructure.blobs.local.packs.naming import Packed, file_of, new_pack
from infrastructure.tasks import delivered

GROUP_BYTES = 4 * 1024 * 1024  # at most in one write and one sync, or one caller's blobs
ON_LOOP = 256 * 1024  # bytes: what is written at once takes less than the way to a thread

Names = dict[str, str]


class _Waiting(msgspec.Struct, frozen=True):
    """Blobs of one caller, and their names once they are durable."""

    blobs: Mapping[str, bytes]
    names: asyncio.Future[Names]

    @property
    def size(self) -> int:
        return sum(map(len, self.blobs.values()))


class Packing:
    """Adds to one pack of its own at a time. Waiting blobs are bounded by who waits for them."""

    def __init__(
        self,
        place: Callable[[str], Path],
        make_folder: Callable[[Path], None],
        *,
        threads: Executor,
        syncs: KernelSyncs | None,
        pace: Pace,
    ) -> None:
        """`place` says where a file of a name goes, `make_folder` makes its folder, durably."""
        self._place = place
        self._make_folder = make_folder
        self._threads = threads
        self._syncs = syncs
        self._pace = pace
        self._waiting: deque[_Waiting] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._pack: Pack | None = None

    async def put(self, blobs: Mapping[str, bytes], unwanted: Callable[[Names], object]) -> Names:
        """Under which names they are durable, all of them; after an error none is.

        What comes for a caller that was cancelled meanwhile goes to `unwanted`.
        Raises StorageFull, Unavailable.
        """
        if not blobs:
            return {}
        loop = asyncio.get_running_loop()
        waiting = _Waiting(blobs, loop.create_future())
        self._waiting.append(waiting)
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write(), name="pack small blobs")
        return await delivered(waiting.names, unwanted)

    def close(self) -> None:
        if self._pack is not None:
            self._pack.close()
            self._pack = None

    async def _write(self) -> None:
        while self._waiting:
            group = self._next_group()
            try:
                packed = iter(await self._store([b for one in group for b in one.blobs.items()]))
            except ApplicationError as error:
                self.close()  # whatever state it is in: the next group begins another
                for one in group:
                    one.names.set_exception(error)
            except BaseException:
                self._pack = None  # a thread may be at it still: it goes with the process
                for one in (*group, *self._waiting):
                    one.names.set_exception(Unavailable("the blob store was stopped"))
                self._waiting.clear()
                raise
            else:
                for one in group:
                    one.names.set_result({chosen: str(next(packed)) for chosen in one.blobs})

    def _next_group(self) -> list[_Waiting]:
        """The first, however large, and those behind it while there is room."""
        group = [self._waiting.popleft()]
        size = group[0].size
        while self._waiting and (size := size + self._waiting[0].size) <= GROUP_BYTES:
            group.append(self._waiting.popleft())
        return group

    async def _store(self, blobs: list[tuple[str, bytes]]) -> list[Packed]:
        loop = asyncio.get_running_loop()
        with told():
            if self._pack is None:
                self._pack = await loop.run_in_executor(self._threads, self._begin)
            pack = self._pack
            places, frames = pack.framed(blobs)
            if len(frames) > ON_LOOP or self._pace.slow:
                await loop.run_in_executor(self._threads, pack.write, frames)
            else:
                began = monotonic()
                pack.write(frames)
                self._pace.took_since(began)
            await self._sync(pack.descriptor)
            pack.wrote(frames)
        if pack.full:
            self.close()
        return places

    def _begin(self) -> Pack:
        name = new_pack()
        path = self._place(file_of(name))
        self._make_folder(path.parent)
        return Pack(path, name)

    async def _sync(self, descriptor: int) -> None:
        if self._syncs is not None:
            syncing = self._syncs.begin([descriptor])
            if syncing is not None:
                return await syncing
        await asyncio.get_running_loop().run_in_executor(self._threads, sync_data, descriptor)
        return None
