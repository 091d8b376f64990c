"""The pack that a process adds to, and what is done to its file: begun, added to, given up."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from application.errors import ApplicationError, Unavailable
from infrastructure import files
from infrastructure.blobs.local.disk import (
    FILE_MODE,
    translate_os_errors,
)
from infrastructure.blobs.local.kernel_sync import KernelSync
from infrastructure.blobs.local.packs import (
    BLOCK_SIZE,
    PackedName,
    PackLocation,
    block_count,
    header,
    new_pack,
    pack_file_name,
    padding,
    parse_packed_name,
    punch_member,
    read,
    size_of,
)
from infrastructure.tasks import shield_result

MAX_PACK_BYTES = 64 * 1024 * 1024  # bytes: a pack that has so many is added to no more

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class OpenPack:
    """An open pack. Its file lock marks it as in use; `close` releases it."""

    def __init__(self, path: Path, name: str) -> None:
        """Creates it, durably. Raises OSError."""
        self._path = path
        self._name = name
        self._blocks = 0  # that are durable
        self.descriptor = files.open_file(path, _NEW, FILE_MODE)
        files.try_lock(self.descriptor)  # free: no other process knows the new file
        try:
            files.sync_folder(path.parent)
        except BaseException:
            self.close()
            raise

    @property
    def full(self) -> bool:
        return self._blocks * BLOCK_SIZE >= MAX_PACK_BYTES

    def framed(self, blobs: Iterable[tuple[str, bytes]]) -> tuple[list[PackedName], bytes]:
        """Return the locations of these blobs if they are appended next, and the bytes to write."""
        block = self._blocks
        places: list[PackedName] = []
        frames: list[bytes] = []
        for chosen, content in blobs:
            size = len(content)
            places.append(PackedName(chosen, PackLocation(self._name, block, size)))
            frames += header(chosen, size), content, padding(size)
            block += block_count(size)
        return places, b"".join(frames)

    def write(self, frames: bytes) -> None:
        for _ in files.write_all(self.descriptor, frames):
            pass

    def wrote(self, frames: bytes) -> None:
        """They are durable: the next ones come behind them."""
        self._blocks += len(frames) // BLOCK_SIZE

    def close(self) -> None:
        """Close the pack and truncate bytes that are not durable: they were never acknowledged."""
        with suppress(OSError):
            files.truncate(self.descriptor, self._blocks * BLOCK_SIZE)
        if not self._blocks:
            files.discard(self._path)
        os.close(self.descriptor)


# Small blobs as they come: those that arrive during one sync of the disk share the next.

MAX_GROUP_BYTES = 4 * 1024 * 1024  # at most in one write and one sync, or one caller's blobs
MAX_INLINE_WRITE_BYTES = (
    256 * 1024
)  # bytes: what is written at once takes less than the way to a thread

Names = dict[str, str]


class _Waiting(msgspec.Struct, frozen=True):
    """Blobs of one caller, and their names once they are durable."""

    blobs: Mapping[str, bytes]
    names: asyncio.Future[Names]

    @property
    def size(self) -> int:
        return sum(map(len, self.blobs.values()))


class PackWriter:
    """Adds to one pack of its own at a time. Waiting blobs are bounded by who waits for them."""

    def __init__(
        self,
        place: Callable[[str], Path],
        make_folder: Callable[[Path], None],
        *,
        threads: Executor,
        kernel_sync: KernelSync | None,
    ) -> None:
        """`place` returns the path of a file, `make_folder` creates its folder durably.

        Without `kernel_sync`, or if it does not accept a request, threads sync.
        """
        self._place = place
        self._make_folder = make_folder
        self._threads = threads
        self._kernel_sync = kernel_sync
        self._waiting: deque[_Waiting] = deque()
        self._writing: asyncio.Task[None] | None = None
        self._pack: OpenPack | None = None

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
        return await shield_result(waiting.names, unwanted)

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
        while self._waiting and (size := size + self._waiting[0].size) <= MAX_GROUP_BYTES:
            group.append(self._waiting.popleft())
        return group

    async def _store(self, blobs: list[tuple[str, bytes]]) -> list[PackedName]:
        loop = asyncio.get_running_loop()
        with translate_os_errors():
            if self._pack is None:
                self._pack = await loop.run_in_executor(self._threads, self._begin)
            pack = self._pack
            places, frames = pack.framed(blobs)
            if len(frames) > MAX_INLINE_WRITE_BYTES:
                await loop.run_in_executor(self._threads, pack.write, frames)
            else:
                pack.write(frames)
            await self._sync(pack.descriptor)
            pack.wrote(frames)
        if pack.full:
            self.close()
        return places

    async def _sync(self, descriptor: int) -> None:
        syncing = self._kernel_sync.submit(descriptor) if self._kernel_sync else None
        if syncing is None:
            loop = asyncio.get_running_loop()
            syncing = loop.run_in_executor(self._threads, files.sync_data, descriptor)
        await syncing

    def _begin(self) -> OpenPack:
        name = new_pack()
        path = self._place(pack_file_name(name))
        self._make_folder(path.parent)
        return OpenPack(path, name)


# Packed blobs of a folder: put, read, measured, freed.

Result = TypeVar("Result")


class PackedBlobs:
    """Blobs by where they are; packs of every process in one folder, and one that is added to."""

    def __init__(
        self, packing: PackWriter, place: Callable[[str], Path], threads: Executor
    ) -> None:
        """`place` returns the path of a file."""
        self._packing = packing
        self._place = place
        self._threads = threads

    def close(self) -> None:
        self._packing.close()

    async def put(self, blobs: Mapping[str, bytes]) -> Names:
        """The names they are kept under. Raises StorageFull, Unavailable."""
        return await self._packing.put(blobs, unwanted=self._free_unwanted)

    async def read(self, packed: PackedName, start: int, end: int | None) -> bytes:
        """Raises BlobMissing, Unavailable."""
        path = self._path(packed)
        return await self._run(lambda: read(path, packed, start, end))

    async def size(self, packed: PackedName) -> int:
        return await self._run(lambda: size_of(self._path(packed), packed))

    async def delete(self, packed: PackedName) -> None:
        await self._run(lambda: punch_member(self._path(packed), packed))

    def _free_unwanted(self, names: Names) -> None:
        """Should the disk refuse, they are the sweeper's."""
        for name in names.values():
            if packed := parse_packed_name(name):
                self._threads.submit(punch_member, self._path(packed), packed)

    def _path(self, packed: PackedName) -> Path:
        return self._place(pack_file_name(packed.place.pack))

    async def _run(self, work: Callable[[], Result]) -> Result:
        with translate_os_errors():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
