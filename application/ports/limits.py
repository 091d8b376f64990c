"""How many transfers of one owner run at once, in all processes together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from uuid import UUID

import msgspec


class TransferPermit(Protocol):
    """One transfer's place among those of its owner."""

    async def release(self) -> None:
        """Makes room for another one. Never raises."""


class TransferLimiter(Protocol):
    """Places that go with the process that took them: kill -9 gives them back."""

    async def take(self, owner: str, most: int) -> TransferPermit | None:
        """A place of the owner's, None where `most` are taken. Raises Unavailable."""


# How much is stored for an owner, or in a batch: what quotas are measured against.


class StorageUsage(msgspec.Struct, frozen=True):
    """Files that were not cancelled, expired, rejected or erased, and their bytes.

    A file that is on its way counts with the size it declared.
    """

    bytes: int = 0
    files: int = 0


class Usage(Protocol):
    """As of a moment ago: what has just been recorded may not be in it yet."""

    async def of_owner(self, owner: str) -> StorageUsage:
        """Raises Unavailable."""

    async def of_batch(self, batch: UUID) -> StorageUsage:
        """Raises Unavailable."""


# The other processes that receive uploads: the newest request wins over theirs too.


class RemotePreemption(Protocol):
    """A way to ask every other process to let go of an upload.

    It is only asked where the blob store found that somebody else is writing.
    """

    async def stop(self, upload: UUID) -> None:
        """Asks the others to end their transfer of this upload; its bytes are committed first.

        Returns without waiting for them.
        """

    def on_stop(self, callback: Callable[[UUID], None]) -> None:
        """Calls back, in the event loop, for every upload that another process asks for."""
