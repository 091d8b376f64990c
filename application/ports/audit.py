"""Ports of auditing: erasures of owners and log seals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

import msgspec

from application.audit.export import Line
from application.audit.seals import AuditSeal


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """Request to destroy all personal data of an owner, with its result."""

    id: UUID
    owner: str
    reason: str
    requested_by: str
    requested_at: datetime
    finished_at: datetime | None = None
    batches: int = 0
    uploads: int = 0


class Erasures(Protocol):
    """Requests for erasure; the orchestrator carries them out. All methods raise Unavailable."""

    async def request(self, erasure: Erasure) -> Erasure:
        """Record the request; return the open one of this owner if there is one."""

    async def get(self, id: UUID) -> Erasure:
        """Return the erasure. Raises NotFound."""

    async def page(self, *, owner: str | None, after: UUID | None, limit: int) -> Sequence[Erasure]:
        """Return erasures of an owner, or of all, oldest first, after the given one."""


class SigningKey(msgspec.Struct, frozen=True):
    """A public key, the first seal that it signs, and itself as other programs read it."""

    key: bytes
    first_seal: int
    pem: str


class Seals(Protocol):
    """Log seals and the exports that contain them."""

    async def page(self, after: int, limit: int) -> Sequence[AuditSeal]:
        """Return seals with numbers beyond `after`, in order. Raises Unavailable."""

    async def keys(self) -> Sequence[SigningKey]:
        """Return the current and former signing keys, oldest first. Raises Unavailable."""

    def export_chunks(self, after: int) -> AsyncIterator[Sequence[Line]]:
        """Yield chunks of every event, from the first seal that reaches beyond position `after`.

        Raises Unavailable."""

    def proofs(self) -> ProofBuilder:
        """Return a builder of proofs for selected events, in the order of positions."""


class ProofBuilder(Protocol):
    """Builds proofs; each seal is returned once."""

    async def proofs_for(self, positions: Sequence[int]) -> Sequence[Line]:
        """Return the seals that cover these positions, then the events. Raises Unavailable."""
