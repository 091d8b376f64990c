"""Preemption and permits in memory, among processes that share the in-memory server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from uuid import UUID

from infrastructure.postgres.listener import UPLOADS
from tests.memory.database import Client, MemoryListener


class MemoryPreemption:
    """The port `RemotePreemption`, by notifications that name the process that asks."""

    def __init__(self, client: Client, listener: MemoryListener, process: str) -> None:
        self._client = client
        self._listener = listener
        self._process = process

    async def stop(self, upload: UUID) -> None:
        await self._client.call(
            "stop", lambda: self._client.database.notify(UPLOADS, f"{self._process} {upload}")
        )

    def on_stop(self, callback: Callable[[UUID], None]) -> None:
        def heard(payload: str) -> None:
            process, _, upload = payload.partition(" ")
            if process != self._process:
                callback(UUID(upload))

        self._listener.subscribe(UPLOADS, heard)


class MemoryTransferLimiter:
    """The port `TransferLimiter`; permits end with the process that holds this object."""

    def __init__(self, running: Counter[str]) -> None:
        self._running = running
        self._held: Counter[str] = Counter()

    async def acquire(self, owner: str, most: int) -> MemoryTransferPermit | None:
        if self._running[owner] >= most:
            return None
        self._running[owner] += 1
        self._held[owner] += 1
        return MemoryTransferPermit(self, owner)

    def release(self, owner: str) -> None:
        if self._held[owner]:
            self._held[owner] -= 1
            self._running[owner] -= 1

    def end(self) -> None:
        """Release the permits of a process that has died."""
        for owner in list(self._held):
            while self._held[owner]:
                self.release(owner)


class MemoryTransferPermit:
    """Permit of one transfer."""

    def __init__(self, limiter: MemoryTransferLimiter, owner: str) -> None:
        self._limiter = limiter
        self._owner = owner

    async def release(self) -> None:
        self._limiter.release(self._owner)
