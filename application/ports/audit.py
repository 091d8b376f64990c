"""Erasures: somebody asked that everything personal of an owner be destroyed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from application.audit.export import Line
from application.audit.seals import AuditSeal


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


# Seals: what proves, to somebody who trusts us little, that the log is as it was.


class SigningKey(msgspec.Struct, frozen=True):
    """A public key, the first seal that it signs, and itself as other programs read it."""

    key: bytes
    first_seal: int
    pem: str


class Seals(Protocol):
    """The seals that were made, and exports that rest on them."""

    async def page(self, after: int, limit: int) -> Sequence[AuditSeal]:
        """Seals with numbers beyond `after`, in order. Raises Unavailable."""

    async def keys(self) -> Sequence[SigningKey]:
        """The keys that signed or will sign next, oldest first. Raises Unavailable."""

    def whole(self, after: int) -> AsyncIterator[Sequence[Line]]:
        """Every event from the first seal on that reaches beyond position `after`, a chunk at a
        time. Raises Unavailable."""

    def proofs(self) -> Prover:
        """Proves events of one's choice, in the order of their positions."""


class Prover(Protocol):
    """Remembers which seals it has told."""

    async def prove(self, positions: Sequence[int]) -> Sequence[Line]:
        """The events at these positions, after the seals that cover them. Raises Unavailable."""
