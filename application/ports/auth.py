"""API keys: who may speak, for which owner, and what they may do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

import msgspec

SYSTEM = "system"
"""Who acts where a process acts by itself, as at its first start."""


class Scope(StrEnum):
    """What a key may do; each includes reading its owner's batches.

    `admin` sees every owner and manages keys; `operator` runs batches of its owner;
    `uploader` starts batches and sends files; `viewer` only reads.
    """

    ADMIN = "admin"
    OPERATOR = "operator"
    UPLOADER = "uploader"
    VIEWER = "viewer"


class Principal(msgspec.Struct, frozen=True):
    """Who acts. `name` is what events record, such as `key:4f7c2a`.

    `batch` limits an uploader to one batch; `expires_at` is when the credential ends.
    """

    name: str
    owner: str
    scope: Scope
    batch: UUID | None = None
    expires_at: datetime | None = None

    @property
    def visible_owner(self) -> str | None:
        """The owner whose rows this principal may see; None for all."""
        return None if self.scope is Scope.ADMIN else self.owner


class Credential(msgspec.Struct, frozen=True):
    """What a principal was authenticated by: an API key's text or a browser session's token."""

    text: str
    is_session: bool = False

    def __repr__(self) -> str:
        return "Credential(...)"


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as listed: never its secret."""

    id: str
    owner: str
    scope: Scope
    label: str = ""
    batch: UUID | None = None
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class Keys(Protocol):
    """The keys that are known. A secret is shown once, when the key is made; its hash is kept."""

    async def create(
        self,
        *,
        owner: str,
        scope: Scope,
        label: str = "",
        batch: UUID | None = None,
        expires_at: datetime | None = None,
        by: str = SYSTEM,
    ) -> tuple[Key, str]:
        """The new key and its text `up_<id>_<secret>`; that `by` made it is recorded."""

    async def authenticate(self, text: str) -> Principal | None:
        """Who holds this key; None if it is unknown, revoked or expired."""

    async def all(self, *, owner: str | None) -> Sequence[Key]:
        """Keys of an owner, or of all, newest first."""

    async def revoke(self, id: str, *, owner: str | None, by: str = SYSTEM) -> Key:
        """Ends a key at once, on every process, and records who did. Raises NotFound."""

    async def changed(self) -> None:
        """Return when credentials may have ended, in any process; at the latest after a second."""

    async def ended(self, credentials: Collection[Credential]) -> frozenset[Credential]:
        """Return those that were revoked, have expired or were signed out. Raises Unavailable."""

    async def open_session(self, principal: Principal, *, lifetime: float) -> str:
        """A browser session's token for this principal, for so many seconds."""

    async def session(self, token: str) -> Principal | None:
        """Who the session belongs to; None if it is unknown or over."""

    async def close_session(self, token: str) -> None:
        """Ends a session."""

    async def issue_login(self, principal: Principal, *, lifetime: float) -> str:
        """A one-time code that `redeem_login` takes once, within so many seconds."""

    async def redeem_login(self, code: str) -> Principal | None:
        """Who the code was issued for; None if it is unknown, used or over."""
