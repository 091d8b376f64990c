"""Authentication: API keys, sessions, and the principals that they identify."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Protocol
from uuid import UUID

import msgspec

SYSTEM = "system"
"""Principal of actions that a process takes by itself, for instance at its first start."""


class Scope(StrEnum):
    """Permissions of a key; each includes reading its owner's batches.

    `admin` sees every owner and manages keys; `operator` runs batches of its owner;
    `uploader` starts batches and sends files; `viewer` only reads.
    """

    ADMIN = "admin"
    OPERATOR = "operator"
    UPLOADER = "uploader"
    VIEWER = "viewer"


class Principal(msgspec.Struct, frozen=True):
    """Authenticated client. `name` is recorded in events, for instance `key:4f7c2a`.

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
    """Text of an API key, or token of a browser session, that authenticated a principal."""

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
    """API keys and sessions. A secret is shown once, at its creation; its hash is stored."""

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
        """Create a key; return it and its text `up_<id>_<secret>`. `by` is recorded."""

    async def authenticate(self, text: str) -> Principal | None:
        """Return the principal of this key; None if it is unknown, revoked or expired."""

    def recently_authenticated(self, text: str) -> Principal | None:
        """Return the principal of a key that `authenticate` confirmed a moment ago, else None."""

    async def all(self, *, owner: str | None) -> Sequence[Key]:
        """Return the keys of an owner, or of all, newest first."""

    async def revoke(self, id: str, *, owner: str | None, by: str = SYSTEM) -> Key:
        """Revoke a key at once, on every process, and record `by`. Raises NotFound."""

    async def changed(self) -> None:
        """Return when credentials may have ended, in any process; at the latest after a second."""

    async def ended(self, credentials: Collection[Credential]) -> frozenset[Credential]:
        """Return those that were revoked, have expired or were signed out. Raises Unavailable."""

    async def open_session(self, principal: Principal, *, lifetime: float) -> str:
        """Open a browser session of `lifetime` seconds and return its token."""

    async def session(self, token: str) -> Principal | None:
        """Return the principal of the session; None if it is unknown or has ended."""

    async def close_session(self, token: str) -> None:
        """End a session."""

    async def create_login_code(self, principal: Principal, *, lifetime: float) -> str:
        """Return a one-time code for `redeem_login`, valid for `lifetime` seconds."""

    async def redeem_login(self, code: str) -> Principal | None:
        """Use up the code and return its principal; None if unknown, used or expired."""
