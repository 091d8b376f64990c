"""
Events of API keys, sign-ins and erasures of owners.

The tags are stored and streamed: they never change, whatever the classes are called. No event holds
a secret, nor what a secret is checked against: `secret_digest` is the hash of the stored hash.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from domain.event import Event


class KeyCreated(Event, frozen=True, kw_only=True, tag="key.created"):
    """An API key was made. `batch` limits it to one batch."""

    key: str
    owner: str
    scope: str
    secret_digest: str
    label: str = ""
    batch: UUID | None = None
    expires_at: datetime | None = None


class KeyImported(Event, frozen=True, kw_only=True, tag="key.imported"):
    """A key that existed before keys were recorded, as it was at that moment."""

    key: str
    owner: str
    scope: str
    secret_digest: str
    created_at: datetime
    label: str = ""
    batch: UUID | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class KeyRevoked(Event, frozen=True, kw_only=True, tag="key.revoked"):
    """The key is refused from now on, with the sessions made from it."""


class LoginIssued(Event, frozen=True, kw_only=True, tag="login.issued"):
    """A one-time login link was made for this principal."""

    principal: str
    owner: str
    scope: str
    batch: UUID | None = None
    expires_at: datetime | None = None


class LoginUsed(Event, frozen=True, kw_only=True, tag="login.used"):
    """The login link was used; it cannot be used again."""


class SessionOpened(Event, frozen=True, kw_only=True, tag="session.opened"):
    """A browser was signed in as this principal."""

    principal: str
    owner: str
    scope: str
    batch: UUID | None = None
    expires_at: datetime | None = None


class SessionClosed(Event, frozen=True, kw_only=True, tag="session.closed"):
    """The browser was signed out."""


class ErasureRequested(Event, frozen=True, kw_only=True, tag="erasure.requested"):
    """An admin requested the destruction of an owner's personal data."""

    owner: str
    reason: str = ""


class ErasureImported(Event, frozen=True, kw_only=True, tag="erasure.imported"):
    """An erasure from before erasures were recorded, as it was at that moment."""

    owner: str
    requested_by: str
    requested_at: datetime
    reason: str = ""
    finished_at: datetime | None = None
    batches: int = 0
    uploads: int = 0


class ErasureFinished(Event, frozen=True, kw_only=True, tag="erasure.finished"):
    """The erasure is done. Numbers of batches and uploads erased; ids of the destroyed `keys`."""

    batches: int
    uploads: int
    keys: tuple[UUID, ...] = ()


KeyEvent: TypeAlias = KeyCreated | KeyImported | KeyRevoked
SignInEvent: TypeAlias = LoginIssued | LoginUsed | SessionOpened | SessionClosed
ErasureEvent: TypeAlias = ErasureRequested | ErasureImported | ErasureFinished
AccessEvent: TypeAlias = KeyEvent | SignInEvent | ErasureEvent
