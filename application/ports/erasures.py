"""Erasures: somebody asked that everything personal of an owner be destroyed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for it, when and why, and when it was done: with how many batches and uploads."""

    id: UUID
    owner: str
    reason: str
    requested_by: str
    requested_at: datetime
    finished_at: datetime | None = None
    batches: int = 0
    uploads: int = 0


class Erasures(Protocol):
    """What was asked for; the orchestrator's role carries it out. All raise Unavailable."""

    async def request(self, erasure: Erasure) -> Erasure:
        """Records the request; the one that is open for this owner already, if there is one."""

    async def get(self, id: UUID) -> Erasure:
        """Raises NotFound."""

    async def page(self, *, owner: str | None, after: UUID | None, limit: int) -> Sequence[Erasure]:
        """Erasures of an owner, or of all, oldest first, those after this one."""
