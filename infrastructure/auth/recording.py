"""Record events of keys and sign-ins in the transaction that changes their rows."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256

from application.append import append_to_stream
from application.ports.keys import Key
from domain.access.events import KeyCreated, KeyRevoked
from domain.ids import key_stream_for
from infrastructure.event_store.writing import append_in
from infrastructure.postgres.pool import Connection


def digest_of(secret_hash: bytes) -> str:
    """Return the hash of a stored secret hash: it identifies the row and grants no access."""
    return "sha256:" + sha256(secret_hash).hexdigest()


async def record_created(connection: Connection, key: Key, secret_hash: bytes, by: str) -> None:
    event = KeyCreated(
        at=key.created_at,
        by=by,
        key=key.id,
        owner=key.owner,
        scope=key.scope.value,
        secret_digest=digest_of(secret_hash),
        label=key.label,
        batch=key.batch,
        expires_at=key.expires_at,
    )
    await append_in(connection, append_to_stream(key_stream_for(key.id), 0, event))


async def record_revoked(connection: Connection, key: Key, by: str) -> None:
    at: datetime | None = key.revoked_at
    assert at is not None
    await append_in(
        connection, append_to_stream(key_stream_for(key.id), None, KeyRevoked(at=at, by=by))
    )
