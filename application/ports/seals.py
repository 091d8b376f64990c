"""Seals: what proves, to somebody who trusts us little, that the log is as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

import msgspec

from application.audit.export import Line
from application.audit.seal import Seal


class SigningKey(msgspec.Struct, frozen=True):
    """A public key, the first seal that it signs, and itself as other programs read it."""

    key: bytes
    first_seal: int
    pem: str


class Seals(Protocol):
    """The seals that were made, and exports that rest on them."""

    async def page(self, after: int, limit: int) -> Sequence[Seal]:
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
