"""Tokens that stand for a principal for a while: a browser session, or a login to be used once."""

from __future__ import annotations

from datetime import datetime
from typing import LiteralString, NamedTuple
from uuid import UUID

import msgspec
from psycopg.sql import SQL, Composed, Identifier

from application.append import append_to_stream
from application.ports.keys import Principal
from domain.access.events import LoginIssued, LoginUsed, SessionClosed, SessionOpened
from domain.ids import sign_in_stream_for
from infrastructure.auth.tokens import hashed, is_token, new_token
from infrastructure.event_store.writing import append_in
from infrastructure.postgres.pool import Pool

_decode = msgspec.json.Decoder(Principal).decode
_encode = msgspec.json.Encoder().encode

# A pass falls with the key it was made from, whoever was faster.
HOLDS = SQL("""p.expires_at > now() AND NOT EXISTS (
    SELECT FROM api_keys k WHERE k.id = p.key_id
    AND (k.revoked_at IS NOT NULL OR k.expires_at <= now()))""")


class PassKind(NamedTuple):
    """Where passes of a kind are kept, and the events that record their beginning and their end."""

    table: str
    stream: str
    begun: type[LoginIssued] | type[SessionOpened]
    ended: type[LoginUsed] | type[SessionClosed]


LOGINS = PassKind("login_codes", "login", LoginIssued, LoginUsed)
SESSIONS = PassKind("browser_sessions", "session", SessionOpened, SessionClosed)


class Passes:
    """The passes kept in one table; `lifetime` is in seconds."""

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
        """A new token; it ends with its principal if that is sooner. Old ones are swept out."""
        token = new_token()
        values = (
            hashed(token),
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
        """Who the token stands for, with the moment it ends."""
        found = await self._one(self._select, token)
        return None if found is None else msgspec.structs.replace(found[0], expires_at=found[1])

    async def take(self, token: str) -> Principal | None:
        """Who the token stood for: from now on, it is nobody's."""
        return await self._end(self._take, token) if is_token(token) else None

    async def drop(self, token: str) -> None:
        await self._end(self._delete, token)

    async def _end(self, query: Composed, token: str) -> Principal | None:
        async with self._pool.connection() as connection, connection.transaction():
            row = await (await connection.execute(query, (hashed(token),))).fetchone()
            if row is None:
                return None
            principal = _decode(row[0])
            event = self._kind.ended(at=row[2], by=principal.name)
            await append_in(connection, append_to_stream(self._stream(token), None, event))
        return principal

    def _stream(self, token: str) -> UUID:
        return sign_in_stream_for(self._kind.stream, hashed(token))

    async def _one(self, query: Composed, token: str) -> tuple[Principal, datetime] | None:
        if not is_token(token):
            return None
        async with self._pool.connection() as connection:
            cursor = await connection.execute(query, (hashed(token),))
            row = await cursor.fetchone()
        return None if row is None else (_decode(row[0]), row[1])


def _on(table: str, query: LiteralString) -> Composed:
    return SQL(query).format(table=Identifier(table), holds=HOLDS)
