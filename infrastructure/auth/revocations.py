"""Notification of revoked, expired and signed-out credentials across processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from psycopg.sql import SQL

from application.ports.keys import Credential
from infrastructure.auth.passes import HOLDS
from infrastructure.auth.tokens import hashed, parse_key
from infrastructure.postgres.listener import CREDENTIALS, FALLBACK, Listener
from infrastructure.postgres.pool import Pool

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
            async with asyncio.timeout(FALLBACK):
                await self._notified.wait()
        self._notified.clear()

    async def ended(self, credentials: Collection[Credential]) -> frozenset[Credential]:
        """Return the credentials that are no longer valid, with at most two queries."""
        keys: dict[str, list[Credential]] = {}
        sessions: dict[bytes, Credential] = {}
        for credential in credentials:
            if credential.is_session:
                sessions[hashed(credential.text)] = credential
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
