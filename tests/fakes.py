"""Fake ports for tests of one process that neither shares a database nor counts storage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from uuid import UUID

from application.ports.limits import StorageUsage
from application.transfers.quotas import Quotas


class NoRemotePreemption:
    """Preempt nothing: no other process receives uploads."""

    async def stop(self, upload: UUID) -> None:
        return

    def on_stop(self, callback: Callable[[UUID], None]) -> None:
        return


class NoStorageUsed:
    """Report that every owner and every batch is empty."""

    async def of_owner(self, owner: str) -> StorageUsage:
        return StorageUsage()

    async def of_batch(self, batch: UUID) -> StorageUsage:
        return StorageUsage()


class InProcessTransferLimiter:
    """Count the running transfers of each owner in memory."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    async def acquire(self, owner: str, most: int) -> InProcessTransferPermit | None:
        if self._running[owner] >= most:
            return None
        self._running[owner] += 1
        return InProcessTransferPermit(self._running, owner)


class InProcessTransferPermit:
    """One running transfer of an owner."""

    def __init__(self, running: Counter[str], owner: str) -> None:
        self._running = running
        self._owner = owner

    async def release(self) -> None:
        self._running[self._owner] -= 1


def unlimited_quotas(clock: Callable[[], float]) -> Quotas:
    """Return quotas that admit everything."""
    return Quotas(NoStorageUsed(), clock, slots=InProcessTransferLimiter())
