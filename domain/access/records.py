"""State of keys, sign-ins and erasures, folded from their events.

The tables used for authentication hold the same state; verification compares the two.
"""

from __future__ import annotations

from datetime import datetime
from typing import Self, assert_never
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


class RecordedKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key."""

    id: UUID
    version: int
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
        if isinstance(event, KeyRevoked):
            raise InvalidState("a key begins by being created")
        return cls(
            id=id,
            version=1,
            key=event.key,
            owner=event.owner,
            scope=event.scope,
            secret_digest=event.secret_digest,
            label=event.label,
            batch=event.batch,
            created_at=event.created_at if isinstance(event, KeyImported) else event.at,
            expires_at=event.expires_at,
            revoked_at=event.revoked_at if isinstance(event, KeyImported) else None,
        )

    def evolve(self, event: KeyEvent) -> Self:
        match event:
            case KeyRevoked(at=at):
                return replace(self, version=self.version + 1, revoked_at=self.revoked_at or at)
            case KeyCreated() | KeyImported():
                raise InvalidState("a key is created once")
            case _:
                assert_never(event)


class RecordedSignIn(msgspec.Struct, frozen=True, kw_only=True):
    """A login link, or the browser session that came of one; `ended` once used or closed."""

    id: UUID
    version: int
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
        return cls(
            id=id,
            version=1,
            principal=event.principal,
            owner=event.owner,
            scope=event.scope,
            batch=event.batch,
            expires_at=event.expires_at,
        )

    def evolve(self, event: SignInEvent) -> Self:
        match event:
            case LoginUsed() | SessionClosed():
                return replace(self, version=self.version + 1, ended=True)
            case LoginIssued() | SessionOpened():
                raise InvalidState("a sign-in begins once")
            case _:
                assert_never(event)


class RecordedErasure(msgspec.Struct, frozen=True, kw_only=True):
    """An erasure of an owner."""

    id: UUID
    version: int
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
            case ErasureRequested(owner=owner, reason=reason, by=by, at=at):
                return cls(
                    id=id,
                    version=1,
                    owner=owner,
                    reason=reason,
                    requested_by=by,
                    requested_at=at,
                )
            case ErasureImported():
                return cls(
                    id=id,
                    version=1,
                    owner=event.owner,
                    reason=event.reason,
                    requested_by=event.requested_by,
                    requested_at=event.requested_at,
                    finished_at=event.finished_at,
                    batches=event.batches,
                    uploads=event.uploads,
                )
            case ErasureFinished():
                raise InvalidState("an erasure begins by being requested")
            case _:
                assert_never(event)

    def evolve(self, event: ErasureEvent) -> Self:
        match event:
            case ErasureFinished(at=at, batches=batches, uploads=uploads, keys=keys):
                return replace(
                    self,
                    version=self.version + 1,
                    finished_at=at,
                    batches=batches,
                    uploads=uploads,
                    keys=keys,
                )
            case ErasureRequested() | ErasureImported():
                raise InvalidState("an erasure is requested once")
            case _:
                assert_never(event)
