"""Tokens that stand for a principal for a while: a browser session, or a login to be used once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

import msgspec
from psycopg.sql import SQL, Composed, Identifier

from application.append import append_to_stream
from application.ports.auth import Credential, Principal
from domain.access.events import LoginIssued, LoginUsed, SessionClosed, SessionOpened
from domain.ids import sign_in_stream_for
from infrastructure.auth.tokens import is_token, new_token, parse_key, token_hash
from infrastructure.event_store.writer import append_in
from infrastructure.postgres.listener import CREDENTIALS, POLL_INTERVAL, Listener
from infrastructure.postgres.pool import Pool

_decode = msgspec.json.Decoder(Principal).decode
_encode = msgspec.json.Encoder().encode

# A session ends with the key that it was made from, also if the key was revoked while the
# session was being created.
HOLDS = SQL("""p.expires_at > now() AND NOT EXISTS (
    SELECT FROM api_keys k WHERE k.id = p.key_id
    AND (k.revoked_at IS NOT NULL OR k.expires_at <= now()))""")


class PassKind(NamedTuple):
    """Table of sessions or login codes, and the events of their beginning and end."""

    table: str
    stream: str
    begun: type[LoginIssued] | type[SessionOpened]
    ended: type[LoginUsed] | type[SessionClosed]


LOGINS = PassKind("login_codes", "login", LoginIssued, LoginUsed)
SESSIONS = PassKind("browser_sessions", "session", SessionOpened, SessionClosed)


class TokenTable:
    """Sessions or login codes kept in one table; `lifetime` is in seconds."""

    def __init__(self, pool: Pool, kind: PassKind) -> None:
        self._pool = pool
        self._kind = kind
        table = kind.table
        self._insert = _on(
            table,
            """INSERT INTO {table} (token_hash, principal, key_id, expires_at)
            SELECT %s, %s::jsonb, (SELECT id FROM api_keys WHERE id = %s),
            least(now() + make_interval(secs => %s), %s) RETURNING now(), expires_at""",
        )
        self._sweep = _on(table, "DELETE FROM {table} WHERE expires_at <= now()")
        self._select = _on(
            table,
            """SELECT p.principal::text, p.expires_at FROM {table} p
            WHERE p.token_hash = %s AND {holds}""",
        )
        self._take = _on(
            table,
            """DELETE FROM {table} p WHERE p.token_hash = %s AND {holds}
            RETURNING p.principal::text, p.expires_at, now()""",
        )
        self._delete = _on(
            table,
            """DELETE FROM {table} WHERE token_hash = %s
            RETURNING principal::text, expires_at, now()""",
        )

    async def issue(self, principal: Principal, lifetime: float) -> str:
        """Return a new token; it ends no later than its principal. Deletes expired tokens."""
        token = new_token()
        values = (
            token_hash(token),
            _encode(principal).decode(),
            principal.name.removeprefix("key:"),
            lifetime,
            principal.expires_at,
        )
        async with self._pool.connection() as connection, connection.transaction():
            await connection.execute(self._sweep)
            row = await (await connection.execute(self._insert, values)).fetchone()
            assert row is not None
            at, expires_at = row
            event = self._kind.begun(
                at=at,
                by=principal.name,
                principal=principal.name,
                owner=principal.owner,
                scope=principal.scope.value,
                batch=principal.batch,
                expires_at=expires_at,
            )
            await append_in(connection, append_to_stream(self._stream(token), 0, event))
        return token

    async def holder(self, token: str) -> Principal | None:
        """Return the principal of the token, with its expiry, or None."""
        found = await self._one(self._select, token)
        return None if found is None else msgspec.structs.replace(found[0], expires_at=found[1])

    async def consume(self, token: str) -> Principal | None:
        """Consume the token and return its principal, or None."""
        return await self._end(self._take, token) if is_token(token) else None

    async def delete(self, token: str) -> None:
        await self._end(self._delete, token)

    async def _end(self, query: Composed, token: str) -> Principal | None:
        async with self._pool.connection() as connection, connection.transaction():
            row = await (await connection.execute(query, (token_hash(token),))).fetchone()
            if row is None:
                return None
            principal = _decode(row[0])
            event = self._kind.ended(at=row[2], by=principal.name)
            await append_in(connection, append_to_stream(self._stream(token), None, event))
        return principal

    def _stream(self, token: str) -> UUID:
        return sign_in_stream_for(self._kind.stream, token_hash(token))

    async def _one(self, query: Composed, token: str) -> tuple[Principal, datetime] | None:
        if not is_token(token):
            return None
        async with self._pool.connection() as connection:
            cursor = await connection.execute(query, (token_hash(token),))
            row = await cursor.fetchone()
        return None if row is None else (_decode(row[0]), row[1])


def _on(table: str, query: LiteralString) -> Composed:
    return SQL(query).format(table=Identifier(table), holds=HOLDS)


# Notification of revoked, expired and signed-out credentials across processes.

_ENDED_KEYS = """SELECT wanted.id FROM unnest(%s::text[]) AS wanted(id)
    WHERE NOT EXISTS (SELECT FROM api_keys k WHERE k.id = wanted.id AND k.revoked_at IS NULL
    AND (k.expires_at IS NULL OR k.expires_at > now()))"""
_ENDED_SESSIONS = SQL(
    """SELECT wanted.hash FROM unnest(%s::bytea[]) AS wanted(hash)
    WHERE NOT EXISTS (SELECT FROM browser_sessions p WHERE p.token_hash = wanted.hash AND {})"""
).format(HOLDS)


class Revocations:
    """Wake-up of one waiting task of this process when credentials change in the database.

    The triggers of `api_keys` and `browser_sessions` notify. A notification can be lost with the
    listener's connection, and an expiry sends no notification: so the wait also ends after a
    second.
    """

    def __init__(
        self, pool: Pool, listener: Listener | None, on_change: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._notified = asyncio.Event()
        self._on_change = on_change
        if listener is not None:
            listener.subscribe(CREDENTIALS, self._note)

    async def changed(self) -> None:
        """Return when credentials may have ended: once notified, at the latest after a second."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_INTERVAL):
                await self._notified.wait()
        self._notified.clear()

    async def ended(self, credentials: Collection[Credential]) -> frozenset[Credential]:
        """Return the credentials that are no longer valid, with at most two queries."""
        keys: dict[str, list[Credential]] = {}
        sessions: dict[bytes, Credential] = {}
        for credential in credentials:
            if credential.is_session:
                sessions[token_hash(credential.text)] = credential
            elif (parts := parse_key(credential.text)) is not None:
                keys.setdefault(parts.id, []).append(credential)
        ended: set[Credential] = set()
        async with self._pool.connection() as connection:
            if keys:
                cursor = await connection.execute(_ENDED_KEYS, (list(keys),))
                ended.update(*(keys[id] for (id,) in await cursor.fetchall()))
            if sessions:
                cursor = await connection.execute(_ENDED_SESSIONS, (list(sessions),))
                ended.update(sessions[bytes(hash)] for (hash,) in await cursor.fetchall())
        return frozenset(ended)

    def _note(self, _: str) -> None:
        self._on_change()
        self._notified.set()
