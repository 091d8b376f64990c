"""Exclusive writer of each blob, on all machines: S3 has no locks, so PostgreSQL's are used.

Advisory locks end with their session, as file locks end with their process: nothing is left to
clean up after kill -9.
"""

from __future__ import annotations

from typing import Protocol

from infrastructure.postgres.locks import SessionLock, SessionLocks, blob_lock


class Lock(Protocol):
    """Exclusive right to write one blob."""

    @property
    def is_held(self) -> bool:
        """False once another process may hold the lock."""

    async def release(self) -> None:
        """Release the lock. Never raises."""


class Locks(Protocol):
    async def acquire(self, name: str) -> Lock | None:
        """Acquire the lock of the blob; return None if it is held. Raises Unavailable."""


class PostgresLocks(SessionLocks):
    """The port `Locks`, for every process that shares the database.

    When the session is lost, all its locks are, and writers notice before they next store bytes.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, name="blob-locks", reacquire=False)

    async def acquire(self, name: str) -> SessionLock | None:
        return await self.try_acquire(blob_lock(name).key)
