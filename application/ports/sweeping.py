"""What the sweeper asks: which uploads nobody goes on with, and what became of some."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec


class Idle(msgspec.Struct, frozen=True):
    """An unfinished upload of which nothing was heard; `version` is that of its last event."""

    upload: UUID
    version: int


class Standing(msgspec.Struct, frozen=True):
    """Where an upload stood a moment ago, and the blob that holds its bytes, once it has all."""

    state: str
    blob: str | None


class Standings(Protocol):
    """The uploads as they were a moment ago: enough to look closer, never enough to delete."""

    async def idle(self, before: datetime, limit: int) -> Sequence[Idle]:
        """Unfinished uploads whose last event is older than `before`; at most `limit`."""

    async def of(self, uploads: Sequence[UUID]) -> dict[UUID, Standing]:
        """Those of these uploads that are known."""
