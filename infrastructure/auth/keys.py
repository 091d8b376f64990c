"""The port `Keys` on PostgreSQL."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any
from uuid import UUID

import structlog
from psycopg.sql import SQL, Composed

from application.append import append_to_stream
from application.errors import NotFound
from application.ports.auth import SYSTEM, Credential, Key, Principal, Scope
from domain.access.events import KeyCreated, KeyRevoked
from domain.ids import key_stream_for
from infrastructure.auth.sessions import LOGINS, SESSIONS, Revocations, TokenTable
from infrastructure.auth.tokens import KEY_LENGTH, new_key, parse_key, token_hash
from infrastructure.event_store.writer import append_in
from infrastructure.files import write_file_atomically
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.listener import Listener
from infrastructure.postgres.pool import Pool

# Record events of keys and sign-ins in the transaction that changes their rows.


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


KEY_CACHE_SECONDS = 1.0  # seconds: how long a revoked key may live on in another process
MAX_CACHED_KEYS = 4096
MAX_LISTED_KEYS = 10_000

_COLUMNS = SQL("id, owner, scope, label, batch, created_at, expires_at, revoked_at")
_INSERT = SQL(
    """INSERT INTO api_keys (id, secret_hash, owner, scope, label, batch, expires_at)
    VALUES (%s, %s, %s, %s, %s, %s, %s) RETURNING {}"""
).format(_COLUMNS)
_SELECT_LIVE = SQL(
    """SELECT {}, secret_hash FROM api_keys
    WHERE id = %s AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"""
).format(_COLUMNS)
_SELECT = SQL("SELECT {} FROM api_keys WHERE id = %s").format(_COLUMNS)
_LIST = SQL(
    """SELECT {} FROM api_keys WHERE %s::text IS NULL OR owner = %s
    ORDER BY created_at DESC, id LIMIT {}"""
).format(_COLUMNS, MAX_LISTED_KEYS)
_LOCK = SQL(
    "SELECT {} FROM api_keys WHERE id = %s AND (%s::text IS NULL OR owner = %s) FOR UPDATE"
).format(_COLUMNS)
_REVOKE = SQL("UPDATE api_keys SET revoked_at = now() WHERE id = %s RETURNING {}").format(_COLUMNS)


class PostgresKeys:
    """Keys, sessions and logins; only hashes of their secrets are stored.

    A valid key is cached for a second, so that a sender of small files costs one query a second.
    Revoking it ends it at once in every process that listens, and within that second in the others.
    Every method raises Unavailable if the database cannot be reached.
    """

    def __init__(self, pool: Pool, listener: Listener | None = None) -> None:
        self._pool = pool
        self._revocations = Revocations(pool, listener, self._forget)
        self._sessions = TokenTable(pool, SESSIONS)
        self._logins = TokenTable(pool, LOGINS)
        self._remembered: dict[bytes, tuple[float, Principal]] = {}

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
        text = new_key()
        secret_hash = token_hash(text.secret)
        values = (text.id, secret_hash, owner, scope, label, batch, expires_at)
        async with self._pool.connection() as connection, connection.transaction():
            row = await (await connection.execute(_INSERT, values)).fetchone()
            assert row is not None
            key = _key(row)
            await record_created(connection, key, secret_hash, by)
        return key, str(text)

    async def authenticate(self, text: str) -> Principal | None:
        parts = parse_key(text)
        if parts is None:
            return None
        if principal := self.recently_authenticated(text):
            return principal
        digest = token_hash(text)
        # Taken before the question is asked: a revocation meanwhile leaves these behind.
        asked_at, remembered = time.monotonic(), self._remembered
        row = await self._one(_SELECT_LIVE, (parts.id,))
        if row is None or not compare_digest(row[-1], token_hash(parts.secret)):
            return None
        principal = _principal(_key(row))
        while len(remembered) >= MAX_CACHED_KEYS:
            del remembered[next(iter(remembered))]
        remembered.pop(digest, None)
        remembered[digest] = (asked_at + KEY_CACHE_SECONDS, principal)
        return principal

    def recently_authenticated(self, text: str) -> Principal | None:
        if len(text) != KEY_LENGTH:  # do not hash whatever a client sends
            return None
        until, principal = self._remembered.get(token_hash(text), (0.0, None))
        return principal if time.monotonic() < until else None

    async def find(self, id: str) -> Key | None:
        """Return the key with this id, valid or not."""
        row = await self._one(_SELECT, (id,))
        return None if row is None else _key(row)

    async def all(self, *, owner: str | None) -> Sequence[Key]:
        """Return the newest keys of an owner, or of all, newest first; 10,000 at most."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_LIST, (owner, owner))
            return [_key(row) for row in await cursor.fetchall()]

    async def revoke(self, id: str, *, owner: str | None, by: str = SYSTEM) -> Key:
        """End a key, and the sessions and logins created from it. Idempotent."""
        try:
            async with self._pool.connection() as connection, connection.transaction():
                row = await (await connection.execute(_LOCK, (id, owner, owner))).fetchone()
                if row is None:
                    raise NotFound("there is no such key")
                key = _key(row)
                if key.revoked_at is None:
                    row = await (await connection.execute(_REVOKE, (id,))).fetchone()
                    assert row is not None
                    key = _key(row)
                    await record_revoked(connection, key, by)
        finally:
            self._forget()
        return key

    async def changed(self) -> None:
        await self._revocations.changed()

    async def ended(self, credentials: Collection[Credential]) -> frozenset[Credential]:
        return await self._revocations.ended(credentials)

    def _forget(self) -> None:
        self._remembered = {}

    async def open_session(self, principal: Principal, *, lifetime: float) -> str:
        return await self._sessions.issue(principal, lifetime)

    async def session(self, token: str) -> Principal | None:
        return await self._sessions.holder(token)

    async def close_session(self, token: str) -> None:
        await self._sessions.delete(token)

    async def create_login_code(self, principal: Principal, *, lifetime: float) -> str:
        return await self._logins.issue(principal, lifetime)

    async def redeem_login(self, code: str) -> Principal | None:
        return await self._logins.consume(code)

    async def _one(self, query: Composed, values: tuple[object, ...]) -> tuple[Any, ...] | None:
        async with self._pool.connection() as connection:
            return await (await connection.execute(query, values)).fetchone()


def _key(row: tuple[Any, ...]) -> Key:
    id, owner, scope, label, batch, created_at, expires_at, revoked_at, *_ = row
    return Key(
        id=id,
        owner=owner,
        scope=Scope(scope),
        label=label,
        batch=batch,
        created_at=created_at,
        expires_at=expires_at,
        revoked_at=revoked_at,
    )


def _principal(key: Key) -> Principal:
    return Principal(
        name=f"key:{key.id}",
        owner=key.owner,
        scope=key.scope,
        batch=key.batch,
        expires_at=key.expires_at,
    )


# The first key: made at the first start, left in a file only its owner can read.

FIRST_OWNER = "default"

_log = structlog.get_logger(__name__)


async def ensure_admin_key(keys: PostgresKeys, file: Path) -> str:
    """Return the admin key in `file`; create it (mode 0600) if this database has none.

    A file with the key of another database is replaced. A revoked key is kept: it was revoked on
    purpose. If two processes start at once, one of them creates the key.
    """
    text = _read(file)
    stale = text is not None
    if text is not None and (parts := parse_key(text)) is not None:
        if await keys.authenticate(text) is not None:
            return text
        if await keys.find(parts.id) is not None:
            _log.warning("admin_key_does_not_hold", file=str(file), key=parts.id)
            return text
    key, text = await keys.create(owner=FIRST_OWNER, scope=Scope.ADMIN, label="first start")
    if write_file_atomically(file, f"{text}\n".encode(), replace=stale):
        _log.info("admin_key_written", file=str(file), key=key.id)
        return text
    await keys.revoke(key.id, owner=None)
    return _read(file) or ""


def _read(file: Path) -> str | None:
    """Return the key in the file; a file that other users may read is made private first."""
    try:
        if file.stat().st_mode & 0o077 and os.name == "posix":
            _log.warning("admin_key_was_readable_by_others", file=str(file))
            file.chmod(0o600)
        return file.read_text(errors="replace").strip()
    except FileNotFoundError:
        return None
