"""Packed blobs of a folder: put, read, measured, freed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from infrastructure.blobs.local.disk import told
from infrastructure.blobs.local.packs.freeing import free
from infrastructure.blobs.local.packs.naming import Packed, file_of, packed_in
from infrastructure.blobs.local.packs.packing import Names, Packing
from infrastructure.blobs.local.packs.reading import read, size_of

Result = TypeVar("Result")


class PackedBlobs:
    """Blobs by where they are; packs of every process in one folder, and one that is added to."""

    def __init__(self, packing: Packing, place: Callable[[str], Path], threads: Executor) -> None:
        """`place` says where a file of a name goes."""
        self._packing = packing
        self._place = place
        self._threads = threads

    def close(self) -> None:
        self._packing.close()

    async def put(self, blobs: Mapping[str, bytes]) -> Names:
        """The names they are kept under. Raises StorageFull, Unavailable."""
        return await self._packing.put(blobs, unwanted=self._free_unwanted)

    async def read(self, packed: Packed, start: int, end: int | None) -> bytes:
        """Raises BlobMissing, Unavailable."""
        path = self._path(packed)
        return await self._run(lambda: read(path, packed, start, end))

    async def size(self, packed: Packed) -> int:
        return await self._run(lambda: size_of(self._path(packed), packed))

    async def delete(self, packed: Packed) -> None:
        await self._run(lambda: free(self._path(packed), packed))

    def _free_unwanted(self, names: Names) -> None:
        """Should the disk refuse, they are the sweeper's."""
        for name in names.values():
            if packed := packed_in(name):
                self._threads.submit(free, self._path(packed), packed)

    def _path(self, packed: Packed) -> Path:
        return self._place(file_of(packed.place.pack))

    async def _run(self, work: Callable[[], Result]) -> Result:
        with told():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
