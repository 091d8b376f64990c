"""Whether there is room for what is about to arrive, asked before its first byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from application.errors import StorageFull
from application.ports.blobs import BlobStore

REMEMBERED = 1.0  # seconds for which the store is not asked again


class Room:
    """Keeps a reserve free in the store. What is promised to others is not counted."""

    def __init__(self, blobs: BlobStore, reserve: int, clock: Callable[[], float]) -> None:
        self._blobs = blobs
        self._reserve = reserve
        self._clock = clock
        self._free: int | None = None
        self._asked: float | None = None

    async def require(self, size: int) -> None:
        """Raises StorageFull unless `size` bytes fit and the reserve stays free."""
        now = self._clock()
        if self._asked is None or now - self._asked > REMEMBERED:
            self._free, self._asked = await self._blobs.free_bytes(), now
        if self._free is not None and self._free < size + self._reserve:
            free = max(0, self._free - self._reserve)
            raise StorageFull(f"there is no room for {size} bytes: {free} may be stored", free)

    @asynccontextmanager
    async def with_free_bytes(self) -> AsyncIterator[None]:
        """Add the free space to a StorageFull that the store raises in this context."""
        try:
            yield
        except StorageFull as full:
            if full.free is None:
                free = await self._blobs.free_bytes()
                full.free = None if free is None else max(0, free - self._reserve)
            raise
