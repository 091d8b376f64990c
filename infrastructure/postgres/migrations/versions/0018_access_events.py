"""Record an event for every existing key, sign-in and erasure.

From here on each is recorded in the transaction that changes its row. A row without an event
is then one that was put in, which is why this happens once, and not at every start.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeAlias
from uuid import UUID

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

_BY = "migration"

# No process makes or revokes one between the copy and the commit.
_HOLD = "LOCK TABLE api_keys, browser_sessions, login_codes, audit.erasures IN SHARE MODE"

_KEYS = """SELECT id, owner, scope, secret_hash, created_at, label, batch, expires_at, revoked_at
FROM api_keys ORDER BY created_at, id"""
_SIGN_INS = "SELECT token_hash, principal, expires_at FROM {} ORDER BY expires_at, token_hash"
_ERASURES = """SELECT id, owner, requested_by, requested_at, reason, finished_at, batches, uploads
FROM audit.erasures ORDER BY requested_at, id"""
_APPEND = """INSERT INTO stored_events (originator_id, originator_version, topic, state)
VALUES (%s, 1, %s, %s)"""

Found: TypeAlias = Iterator[tuple[UUID, Any]]


def upgrade() -> None:
    from infrastructure.event_store.codec import CODEC
    from infrastructure.postgres.locks import LOG_LOCK

    connection = op.get_bind().connection
    cursor = connection.cursor()
    cursor.execute(_HOLD)
    found = [*_keys(cursor), *_sign_ins(cursor), *_erasures(cursor)]
    if found:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", (LOG_LOCK.key,))
        for stream, event in found:
            cursor.execute(_APPEND, (stream, *CODEC.encode(event)))
    cursor.close()


def _keys(cursor: Any) -> Found:
    from domain.access.events import KeyImported
    from domain.ids import key_stream_for
    from infrastructure.auth.keys import digest_of

    cursor.execute(_KEYS)
    for id, owner, scope, secret_hash, created_at, label, batch, expires_at, revoked_at in cursor:
        event = KeyImported(
            at=datetime.now(UTC),
            by=_BY,
            key=id,
            owner=owner,
            scope=scope,
            secret_digest=digest_of(secret_hash),
            created_at=created_at,
            label=label,
            batch=batch,
            expires_at=expires_at,
            revoked_at=revoked_at,
        )
        yield key_stream_for(id), event


def _sign_ins(cursor: Any) -> Found:
    from domain.access.events import LoginIssued, SessionOpened
    from domain.ids import sign_in_stream_for

    for table, kind, event in (
        ("login_codes", "login", LoginIssued),
        ("browser_sessions", "session", SessionOpened),
    ):
        cursor.execute(_SIGN_INS.format(table))
        for token_hash, principal, expires_at in cursor:
            batch = principal.get("batch")
            opened = event(
                at=datetime.now(UTC),
                by=_BY,
                principal=principal["name"],
                owner=principal["owner"],
                scope=principal["scope"],
                batch=UUID(batch) if batch else None,
                expires_at=expires_at,
            )
            yield sign_in_stream_for(kind, token_hash), opened


def _erasures(cursor: Any) -> Found:
    from domain.access.events import ErasureImported

    cursor.execute(_ERASURES)
    for id, owner, requested_by, requested_at, reason, finished_at, batches, uploads in cursor:
        event = ErasureImported(
            at=datetime.now(UTC),
            by=_BY,
            owner=owner,
            requested_by=requested_by,
            requested_at=requested_at,
            reason=reason,
            finished_at=finished_at,
            batches=batches,
            uploads=uploads,
        )
        yield id, event
