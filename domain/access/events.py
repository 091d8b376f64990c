"""
Events of API keys, sign-ins and erasures of owners.

The tags are stored and streamed: they never change, whatever the classes are called. No event holds
a secret, nor what a secret is checked against: `secret_digest` is the hash of the stored hash.
"""

from __future__ import annotations

from datetime import datetime
from typing import TypeAlias, get_args
from uuid import UUID

from domain.event import Event, Public, event_type


@event_type("Key created")
class KeyCreated(Event, frozen=True, kw_only=True, tag="key.created"):
    """An API key was made. `batch` limits it to one batch."""

    key: Public[str]
    owner: Public[str]
    scope: Public[str]
    secret_digest: Public[str]
    label: Public[str] = ""
    batch: UUID | None = None
    expires_at: datetime | None = None


@event_type("Key imported")
class KeyImported(Event, frozen=True, kw_only=True, tag="key.imported"):
    """A key that existed before keys were recorded, as it was at that moment."""

    key: Public[str]
    owner: Public[str]
    scope: Public[str]
    secret_digest: Public[str]
    created_at: datetime
    label: Public[str] = ""
    batch: UUID | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


@event_type("Key revoked")
class KeyRevoked(Event, frozen=True, kw_only=True, tag="key.revoked"):
    """The key is refused from now on, with the sessions made from it."""


class _SignIn(Event, frozen=True, kw_only=True):
    """Fields of both ways to begin a sign-in."""

    principal: Public[str]
    owner: Public[str]
    scope: Public[str]
    batch: UUID | None = None
    expires_at: datetime | None = None


@event_type("Login link issued")
class LoginIssued(_SignIn, frozen=True, kw_only=True, tag="login.issued"):
    """A one-time login link was made for this principal."""


@event_type("Login link used")
class LoginUsed(Event, frozen=True, kw_only=True, tag="login.used"):
    """The login link was used; it cannot be used again."""


@event_type("Signed in")
class SessionOpened(_SignIn, frozen=True, kw_only=True, tag="session.opened"):
    """A browser was signed in as this principal."""


@event_type("Signed out")
class SessionClosed(Event, frozen=True, kw_only=True, tag="session.closed"):
    """The browser was signed out."""


@event_type("Erasure requested")
class ErasureRequested(Event, frozen=True, kw_only=True, tag="erasure.requested"):
    """An admin requested the destruction of an owner's personal data."""

    owner: Public[str]
    reason: Public[str] = ""


@event_type("Erasure imported")
class ErasureImported(Event, frozen=True, kw_only=True, tag="erasure.imported"):
    """An erasure from before erasures were recorded, as it was at that moment."""

    owner: Public[str]
    requested_by: Public[str]
    requested_at: datetime
    reason: Public[str] = ""
    finished_at: datetime | None = None
    batches: int = 0
    uploads: int = 0


@event_type("Erasure finished")
class ErasureFinished(Event, frozen=True, kw_only=True, tag="erasure.finished"):
    """The erasure is done. Numbers of batches and uploads erased; ids of the destroyed `keys`."""

    batches: int
    uploads: int
    keys: tuple[UUID, ...] = ()


KeyEvent: TypeAlias = KeyCreated | KeyImported | KeyRevoked
SignInEvent: TypeAlias = LoginIssued | LoginUsed | SessionOpened | SessionClosed
ErasureEvent: TypeAlias = ErasureRequested | ErasureImported | ErasureFinished
AccessEvent: TypeAlias = KeyEvent | SignInEvent | ErasureEvent

KEY_EVENTS: tuple[type[KeyEvent], ...] = get_args(KeyEvent)
SIGN_IN_EVENTS: tuple[type[SignInEvent], ...] = get_args(SignInEvent)
ERASURE_EVENTS: tuple[type[ErasureEvent], ...] = get_args(ErasureEvent)
