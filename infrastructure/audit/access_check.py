"""Verification of API keys, sign-ins, erasures and owners' keys against the log.

A row and its event are written in one transaction, so that in one database snapshot each row must
equal the state folded from its stream.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, LiteralString
from uuid import UUID

from domain.access.records import RecordedErasure, RecordedKey, RecordedSignIn
from domain.errors import CommandRejected
from domain.ids import key_stream_for, sign_in_stream_for
from infrastructure.audit.verifier import Findings, difference
from infrastructure.auth.keys import digest_of
from infrastructure.auth.sessions import LOGINS, SESSIONS, PassKind
from infrastructure.event_store.codec import Codec
from infrastructure.event_store.event_log import Aggregate, MixedStream, apply_event
from infrastructure.event_store.reader import recorded_of
from infrastructure.postgres.connection import Connection, fetch_rows

EVENTS_PER_PAGE = 500  # rows in memory at a time

_KEYS = """SELECT id, secret_hash, owner, scope, label, batch, created_at, expires_at, revoked_at
FROM api_keys WHERE id > %s ORDER BY id LIMIT %s"""
_PASSES: LiteralString = """SELECT token_hash, principal, expires_at, key_id FROM {}
WHERE token_hash > %s ORDER BY token_hash LIMIT %s"""
_ERASURES = """SELECT id, owner, reason, requested_by, requested_at, finished_at, batches, uploads
FROM audit.erasures WHERE id > %s ORDER BY id LIMIT %s"""
_EVENTS = """SELECT originator_id, originator_version, notification_id, topic, state
FROM stored_events WHERE originator_id = ANY(%s) ORDER BY originator_id, originator_version"""

_KNOWN_KEYS = "SELECT id FROM api_keys WHERE id = ANY(%s)"
_KNOWN_ERASURES = "SELECT id FROM audit.erasures WHERE id = ANY(%s)"

_OWNER_KEYS = """SELECT wanted.id, k.owner, coalesce(k.wrapped, k.unwrapped) IS NULL, k.destroyed_at
FROM unnest(%s::uuid[]) AS wanted (id) LEFT JOIN audit.owner_keys k ON k.id = wanted.id"""
_UNREQUESTED = """SELECT k.id::text, k.owner FROM audit.owner_keys k
WHERE k.destroyed_at IS NOT NULL AND NOT EXISTS (
    SELECT FROM audit.erasures e WHERE e.owner = k.owner AND (e.requested_at >= k.made_at
        OR k.destroyed_at BETWEEN e.requested_at AND coalesce(e.finished_at, now())))
ORDER BY 1 LIMIT %s"""
_SURVIVING = """SELECT k.id::text, k.owner FROM audit.owner_keys k
WHERE k.destroyed_at IS NULL AND EXISTS (SELECT FROM audit.erasures e
    WHERE e.owner = k.owner AND e.finished_at IS NOT NULL AND e.requested_at > k.made_at)
ORDER BY 1 LIMIT %s"""

# A key that lives under a master key that is destroyed, or unknown, could not be opened; one of an
# owner who was erased must not have been encrypted with a master key that is still there.
_UNOPENABLE = """SELECT k.id::text, k.master FROM audit.owner_keys k
LEFT JOIN audit.master_keys m ON m.id = k.master
WHERE k.destroyed_at IS NULL AND k.wrapped IS NOT NULL
    AND (m.id IS NULL OR m.destroyed_at IS NOT NULL)
ORDER BY 1 LIMIT %s"""
_UNDESTROYED = """SELECT k.id::text, k.master FROM audit.owner_keys k
JOIN audit.master_keys m ON m.id = k.master
WHERE k.destroyed_at IS NOT NULL AND m.destroyed_at IS NULL AND NOT EXISTS (
    SELECT FROM audit.erasures e WHERE e.owner = k.owner AND e.finished_at IS NULL)
ORDER BY 1 LIMIT %s"""

_COUNTS = """SELECT (SELECT count(*) FROM api_keys), (SELECT count(*) FROM browser_sessions),
(SELECT count(*) FROM login_codes), (SELECT count(*) FROM audit.erasures),
(SELECT count(*) FROM audit.owner_keys)"""
COUNTED = ("keys", "sessions", "logins", "erasures", "owner keys")


class AccessCheck:
    """Comparison of rows with their streams, and of streams in the log with their rows."""

    def __init__(self, connection: Connection, codec: Codec, findings: Findings) -> None:
        self._connection = connection
        self._codec = codec
        self._findings = findings
        self._owner_keys: dict[UUID, str] = {}  # of the boxes that were met, whose they are
        self._destroyed: set[UUID] = set()  # keys that a finished erasure names

    def met_box(self, key: UUID, owner: str) -> None:
        """Note that an event of this owner's stream is encrypted with this key."""
        known = self._owner_keys.setdefault(key, owner)
        if known != owner:
            detail = f"encrypts events of {known} and of {owner}"
            self._findings.add("owner_key_altered", "audit.owner_keys", key, detail)
            self._owner_keys[key] = owner

    async def met(self, aggregates: Sequence[Aggregate]) -> None:
        """Note completely folded streams: each key and erasure must have its row."""
        keys = {one.key: one for one in aggregates if isinstance(one, RecordedKey)}
        erasures = {one.id: one for one in aggregates if isinstance(one, RecordedErasure)}
        for erasure in erasures.values():
            self._destroyed.update(erasure.keys)
        if keys:
            known = {row[0] for row in await fetch_rows(self._connection, _KNOWN_KEYS, list(keys))}
            for id in keys.keys() - known:
                detail = f"is missing: it was created for {keys[id].owner}"
                self._findings.add("key_altered", "api_keys", id, detail)
        if erasures:
            there = {
                row[0]
                for row in await fetch_rows(self._connection, _KNOWN_ERASURES, list(erasures))
            }
            for stream in erasures.keys() - there:
                detail = f"is missing: {erasures[stream].requested_by} requested it"
                self._findings.add("erasure_altered", "audit.erasures", stream, detail)

    async def end(self) -> dict[str, int]:
        """Check all rows, and return how many there are of each kind."""
        await self._check_keys()
        for kind in (LOGINS, SESSIONS):
            await self._check_passes(kind)
        await self._check_erasures()
        await self._check_owner_keys()
        (counts,) = await fetch_rows(self._connection, _COUNTS)
        return dict(zip(COUNTED, counts, strict=True))

    async def _check_keys(self) -> None:
        async for rows in self._pages(_KEYS, ""):
            streams = await self._streams([key_stream_for(row[0]) for row in rows])
            for id, secret_hash, *columns in rows:
                names = ("owner", "scope", "label", "batch", "created_at", "expires_at")
                found = dict(zip((*names, "revoked_at"), columns, strict=True))
                found["secret_digest"] = digest_of(secret_hash)
                recorded = streams.get(key_stream_for(id))
                self._compare("key_altered", "api_keys", id, found, recorded, RecordedKey)

    async def _check_passes(self, kind: PassKind) -> None:
        query: Any = _PASSES.format(kind.table)
        async for rows in self._pages(query, b""):
            ids = [sign_in_stream_for(kind.stream, row[0]) for row in rows]
            streams = await self._streams(ids)
            for stream, (_, principal, expires_at, key_id) in zip(ids, rows, strict=True):
                batch = principal.get("batch")
                found = {
                    "principal": principal.get("name"),
                    "owner": principal.get("owner"),
                    "scope": principal.get("scope"),
                    "batch": UUID(batch) if batch else None,
                    "expires_at": expires_at,
                    "ended": False,
                }
                recorded = streams.get(stream)
                self._compare(
                    "sign_in_altered", kind.table, stream, found, recorded, RecordedSignIn
                )
                name = found["principal"]
                if key_id is None and str(name).startswith("key:"):
                    detail = f"is not tied to {name}: revoking that key would not end it"
                    self._findings.add("sign_in_altered", kind.table, stream, detail)
                elif key_id is not None and name != f"key:{key_id}":
                    detail = f"is tied to key {key_id}, but it is of {name}"
                    self._findings.add("sign_in_altered", kind.table, stream, detail)

    async def _check_erasures(self) -> None:
        names = ("owner", "reason", "requested_by", "requested_at", "finished_at")
        async for rows in self._pages(_ERASURES, UUID(int=0)):
            streams = await self._streams([row[0] for row in rows])
            for id, *columns in rows:
                found = dict(zip((*names, "batches", "uploads"), columns, strict=True))
                self._compare(
                    "erasure_altered", "audit.erasures", id, found, streams.get(id), RecordedErasure
                )

    async def _check_owner_keys(self) -> None:
        """Check that owner keys exist unless the owner was erased: a lost key reads as erased."""
        wanted = list({*self._owner_keys, *self._destroyed})
        for start in range(0, len(wanted), EVENTS_PER_PAGE):
            rows = await fetch_rows(
                self._connection, _OWNER_KEYS, wanted[start : start + EVENTS_PER_PAGE]
            )
            for id, owner, is_null, destroyed_at in rows:
                self._check_owner_key(id, owner, is_null, destroyed_at)
        for query, detail in (
            (_UNREQUESTED, "was destroyed, and no erasure of {} was requested"),
            (_SURVIVING, "is there, although {} was erased since it was made"),
            (_UNOPENABLE, "is encrypted with the master key {}, which is destroyed or unknown"),
            (_UNDESTROYED, "was destroyed, but not the master key {} that encrypted it"),
        ):
            for id, name in await fetch_rows(self._connection, query, EVENTS_PER_PAGE):
                self._findings.add("owner_key_altered", "audit.owner_keys", id, detail.format(name))

    def _check_owner_key(self, id: UUID, owner: str, is_null: bool, destroyed_at: object) -> None:
        expected = self._owner_keys.get(id, owner)
        detail = ""
        if owner is None:
            detail = f"is missing: what it encrypted of {expected} reads as erased"
        elif owner != expected:
            detail = difference("owner", owner, expected)
        elif is_null != (destroyed_at is not None):
            detail = "is destroyed in part: key and destroyed_at do not agree"
        elif id in self._destroyed and not is_null:
            detail = "is there, although an erasure destroyed it"
        if detail:
            self._findings.add("owner_key_altered", "audit.owner_keys", id, detail)

    def _compare(
        self,
        kind: Any,
        table: str,
        key: object,
        found: dict[str, Any],
        recorded: Aggregate | None,
        expected: type[Any],
    ) -> None:
        if not isinstance(recorded, expected):
            self._findings.add(kind, table, key, "no event in the log is of it: it was put in")
            return
        differing = [
            difference(name, value, getattr(recorded, name))
            for name, value in found.items()
            if value != getattr(recorded, name)
        ]
        if differing:
            self._findings.add(kind, table, key, "differs from the log: " + ", ".join(differing))

    async def _streams(self, ids: list[UUID]) -> dict[UUID, Aggregate]:
        found: dict[UUID, Aggregate] = {}
        rows = await fetch_rows(self._connection, _EVENTS, ids)
        await self._codec.load_keys(row[4] for row in rows)
        for recorded in (recorded_of(self._codec, *row) for row in rows):
            try:
                after = apply_event(recorded.stream, found.get(recorded.stream), recorded.event)
                if after is not None:
                    found[recorded.stream] = after
            except (CommandRejected, MixedStream):
                found.pop(recorded.stream, None)  # the pass over the log names it
        return found

    async def _pages(
        self, query: LiteralString, first: object
    ) -> AsyncIterator[list[tuple[Any, ...]]]:
        last = first
        while rows := await fetch_rows(self._connection, query, last, EVENTS_PER_PAGE):
            yield rows
            last = rows[-1][0]
