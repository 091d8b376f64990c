"""Limits across processes: concurrent transfers, storage usage, preemption of uploads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

import msgspec


class TransferPermit(Protocol):
    """Permit of one transfer of an owner."""

    async def release(self) -> None:
        """Release the permit. Never raises."""


class TransferLimiter(Protocol):
    """Distributed semaphore per owner. A permit ends with its process, also after kill -9."""

    async def acquire(self, owner: str, most: int) -> TransferPermit | None:
        """Acquire a permit, or return None if the owner has `most`. Raises Unavailable."""


class StorageUsage(msgspec.Struct, frozen=True):
    """Files that were not cancelled, expired, rejected or erased, and their bytes.

    An unfinished upload counts with its declared size.
    """

    bytes: int = 0
    files: int = 0


class Usage(Protocol):
    """Storage usage, which may lag slightly behind the event log."""

    async def of_owner(self, owner: str) -> StorageUsage:
        """Raises Unavailable."""

    async def of_batch(self, batch: UUID) -> StorageUsage:
        """Raises Unavailable."""


class RemotePreemption(Protocol):
    """Requests to all other processes to release an upload.

    Used only after the blob store reported another writer.
    """

    async def stop(self, upload: UUID) -> None:
        """Ask the other processes to preempt their transfer of this upload.

        They commit its bytes first. Returns without waiting for them.
        """

    def on_stop(self, callback: Callable[[UUID], None]) -> None:
        """Register a callback, run in the event loop, for requests of other processes."""
