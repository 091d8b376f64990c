"""Locks of blobs in the memory of one process, for tests of a bucket without a database."""

from __future__ import annotations


class InProcessLocks:
    """The port `Locks`."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    async def acquire(self, name: str) -> _InProcessLock | None:
        if name in self.held:
            return None
        self.held.add(name)
        return _InProcessLock(self.held, name)


class _InProcessLock:
    def __init__(self, held: set[str], name: str) -> None:
        self._held = held
        self._name = name

    @property
    def is_held(self) -> bool:
        return self._name in self._held

    async def release(self) -> None:
        self._held.discard(self._name)
