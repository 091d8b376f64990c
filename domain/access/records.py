"""State of keys, sign-ins and erasures, folded from their events.

The tables used for authentication hold the same state; verification compares the two.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self, assert_never
from uuid import UUID

import msgspec
from msgspec.structs import replace

from domain.access.events import (
    ErasureEvent,
    ErasureFinished,
    ErasureImported,
    ErasureRequested,
    KeyCreated,
    KeyEvent,
    KeyImported,
    KeyRevoked,
    LoginIssued,
    LoginUsed,
    SessionClosed,
    SessionOpened,
    SignInEvent,
)
from domain.errors import InvalidState
from domain.event import Event


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    id: UUID
    version: int

    @classmethod
    def _from_first(cls, id: UUID, event: Event, **more: Any) -> Self:
        """Return the state after the first event: its fields of the same names, and `more`."""
        names = set(cls.__struct_fields__) & set(event.__struct_fields__) - more.keys()
        return cls(id=id, version=1, **{name: getattr(event, name) for name in names}, **more)

    def _after(self, **changes: Any) -> Self:
        return replace(self, version=self.version + 1, **changes)


class RecordedKey(_Record, frozen=True, kw_only=True):
    """An API key."""

    key: str
    owner: str
    scope: str
    secret_digest: str
    label: str
    batch: UUID | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None = None

    @classmethod
    def begin(cls, id: UUID, event: KeyEvent) -> Self:
        match event:
            case KeyCreated(at=at):
                return cls._from_first(id, event, created_at=at)
            case KeyImported():
                return cls._from_first(id, event)
            case KeyRevoked():
                raise InvalidState("a key begins by being created")
            case _:
                assert_never(event)

    def evolve(self, event: KeyEvent) -> Self:
        match event:
            case KeyRevoked(at=at):
                return self._after(revoked_at=self.revoked_at or at)
            case KeyCreated() | KeyImported():
                raise InvalidState("a key is created once")
            case _:
                assert_never(event)


class RecordedSignIn(_Record, frozen=True, kw_only=True):
    """A login link or a browser session; `ended` once it is used or closed."""

    principal: str
    owner: str
    scope: str
    batch: UUID | None
    expires_at: datetime | None
    ended: bool = False

    @classmethod
    def begin(cls, id: UUID, event: SignInEvent) -> Self:
        if isinstance(event, LoginUsed | SessionClosed):
            raise InvalidState("a sign-in begins with its principal")
        return cls._from_first(id, event)

    def evolve(self, event: SignInEvent) -> Self:
        match event:
            case LoginUsed() | SessionClosed():
                return self._after(ended=True)
            case LoginIssued() | SessionOpened():
                raise InvalidState("a sign-in begins once")
            case _:
                assert_never(event)


class RecordedErasure(_Record, frozen=True, kw_only=True):
    """An erasure of an owner."""

    owner: str
    reason: str
    requested_by: str
    requested_at: datetime
    finished_at: datetime | None = None
    batches: int = 0
    uploads: int = 0
    keys: tuple[UUID, ...] = ()

    @classmethod
    def begin(cls, id: UUID, event: ErasureEvent) -> Self:
        match event:
            case ErasureRequested(at=at, by=by):
                return cls._from_first(id, event, requested_by=by, requested_at=at)
            case ErasureImported():
                return cls._from_first(id, event)
            case ErasureFinished():
                raise InvalidState("an erasure begins by being requested")
            case _:
                assert_never(event)

    def evolve(self, event: ErasureEvent) -> Self:
        match event:
            case ErasureFinished(at=at, batches=batches, uploads=uploads, keys=keys):
                return self._after(finished_at=at, batches=batches, uploads=uploads, keys=keys)
            case ErasureRequested() | ErasureImported():
                raise InvalidState("an erasure is requested once")
            case _:
                assert_never(event)
