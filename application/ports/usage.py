"""How much is stored for an owner, or in a batch: what quotas are measured against."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

import msgspec


class Used(msgspec.Struct, frozen=True):
    """Files that were not cancelled, expired, rejected or erased, and their bytes.

    A file that is on its way counts with the size it declared.
    """

    bytes: int = 0
    files: int = 0


class Usage(Protocol):
    """As of a moment ago: what has just been recorded may not be in it yet."""

    async def of_owner(self, owner: str) -> Used:
        """Raises Unavailable."""

    async def of_batch(self, batch: UUID) -> Used:
        """Raises Unavailable."""
