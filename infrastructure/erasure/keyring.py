"""The keys of owners, as far as this process needs them at the moment.

In the database they are encrypted with a master key (`master_keys`). Events are encrypted with
AES-256-GCM (NIST SP 800-38D), a random nonce of 12 bytes before each ciphertext: one key may do so
for some 2^32 events.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID, uuid4

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from application.append import append_to_stream
from application.errors import NotFound, Unavailable
from application.ports.audit import Erasure
from domain.access.events import ErasureFinished, ErasureRequested
from domain.errors import InvalidState
from infrastructure.erasure.master_keys import MasterKeys, NoMasterKey
from infrastructure.erasure.wrapped_keys import current_master, opened_for, sealed_with
from infrastructure.event_store.codec import EncryptedFields
from infrastructure.event_store.writer import append_in
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool

# The port `Erasures` on PostgreSQL, and the queries of the eraser.

_COLUMNS = """SELECT id, owner, reason, requested_by, requested_at, finished_at, batches, uploads
FROM audit.erasures"""
_REQUEST = """INSERT INTO audit.erasures (id, owner, reason, requested_by, requested_at)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT (owner) WHERE finished_at IS NULL DO NOTHING"""
_OPEN = f"{_COLUMNS} WHERE owner = %s AND finished_at IS NULL"
_BY_ID = f"{_COLUMNS} WHERE id = %s"
_PAGE = f"""{_COLUMNS} WHERE (%(owner)s::text IS NULL OR owner = %(owner)s)
AND (%(after)s::uuid IS NULL OR (requested_at, id) > (
    SELECT requested_at, id FROM audit.erasures WHERE id = %(after)s))
ORDER BY requested_at, id LIMIT %(limit)s"""  # noqa: S608
_UNFINISHED = f"{_COLUMNS} WHERE finished_at IS NULL ORDER BY requested_at, id LIMIT %s"
_FINISH = """UPDATE audit.erasures SET finished_at = %s, batches = %s, uploads = %s
WHERE id = %s AND finished_at IS NULL"""
_DESTROYED = """SELECT id FROM audit.owner_keys WHERE owner = %s AND destroyed_at IS NOT NULL
ORDER BY made_at, id"""

BY = "eraser"  # who finishes an erasure


class PostgresErasures:
    """The port `Erasures` on a connection pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def request(self, erasure: Erasure) -> Erasure:
        values = (
            erasure.id,
            erasure.owner,
            erasure.reason,
            erasure.requested_by,
            erasure.requested_at,
        )
        async with self._pool.connection() as connection:
            while True:  # one that was open may be finished between the two
                async with connection.transaction():
                    inserted = await connection.execute(_REQUEST, values)
                    if inserted.rowcount:
                        await append_in(
                            connection, append_to_stream(erasure.id, 0, _requested(erasure))
                        )
                if found := await _erasures(connection, _OPEN, (erasure.owner,)):
                    return found[0]

    async def get(self, id: UUID) -> Erasure:
        async with self._pool.connection() as connection:
            if found := await _erasures(connection, _BY_ID, (id,)):
                return found[0]
        raise NotFound(f"no erasure {id}")

    async def page(self, *, owner: str | None, after: UUID | None, limit: int) -> Sequence[Erasure]:
        values = {"owner": owner, "after": after, "limit": limit}
        async with self._pool.connection() as connection:
            return await _erasures(connection, _PAGE, values)


async def pending_erasures(connection: Connection, limit: int) -> list[Erasure]:
    """Return the unfinished erasures, oldest first."""
    return await _erasures(connection, _UNFINISHED, (limit,))


async def mark_done(
    connection: Connection, erasure: Erasure, at: datetime, batches: int, uploads: int
) -> None:
    """Mark the erasure as finished, and record the event with the ids of the destroyed keys."""
    async with connection.transaction():
        finished = await connection.execute(_FINISH, (at, batches, uploads, erasure.id))
        if not finished.rowcount:
            return
        cursor = await connection.execute(_DESTROYED, (erasure.owner,))
        keys = tuple(row[0] for row in await cursor.fetchall())
        event = ErasureFinished(at=at, by=BY, batches=batches, uploads=uploads, keys=keys)
        await append_in(connection, append_to_stream(erasure.id, None, event))


def _requested(erasure: Erasure) -> ErasureRequested:
    return ErasureRequested(
        at=erasure.requested_at,
        by=erasure.requested_by,
        owner=erasure.owner,
        reason=erasure.reason,
    )


async def _erasures(connection: Connection, query: Any, values: Any) -> list[Erasure]:
    names = Erasure.__struct_fields__
    cursor = await connection.execute(query, values)
    return [Erasure(**dict(zip(names, row, strict=True))) for row in await cursor.fetchall()]


KEY_CACHE_SECONDS = (
    5.0  # seconds after which a key is asked for anew: it may have been destroyed elsewhere
)
MAX_CACHED_KEYS = 10_000  # owners, and keys, that are remembered
NONCE_BYTES = 12  # bytes

# Refused where the master key was replaced meanwhile: then it is tried again with the new one.
_NEW = """WITH master AS (
    SELECT id FROM audit.master_keys WHERE id = %s AND current FOR SHARE)
INSERT INTO audit.owner_keys (id, owner, wrapped, master)
SELECT new.id, new.owner, new.wrapped, master.id
FROM unnest(%s::uuid[], %s::text[], %s::bytea[]) AS new (id, owner, wrapped), master
ON CONFLICT (owner) WHERE destroyed_at IS NULL DO NOTHING"""

_OF_OWNERS = """SELECT wanted.owner, k.id, k.wrapped, k.master, e.id IS NOT NULL
FROM unnest(%s::text[]) AS wanted (owner)
LEFT JOIN audit.owner_keys k ON k.owner = wanted.owner AND k.destroyed_at IS NULL
LEFT JOIN audit.erasures e ON e.owner = wanted.owner AND e.finished_at IS NULL"""

# What a destroyed master key encrypted is destroyed as well, also where its row was put back.
_SELECT_KEYS = """SELECT k.id, k.wrapped, k.master FROM audit.owner_keys k
JOIN audit.master_keys m ON m.id = k.master AND m.destroyed_at IS NULL
WHERE k.id = ANY(%s) AND k.destroyed_at IS NULL"""
_SELECT_DESTROYED = """SELECT id FROM audit.owner_keys
WHERE id = ANY(%s) AND destroyed_at IS NOT NULL"""

MAX_CREATE_TRIES = 5  # of looking up keys while their master key is being replaced
RETRY_PAUSE = 0.2  # seconds
UNREADABLE = "the keys of owners cannot be read"

_log = structlog.get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V")


class _Owner(NamedTuple):
    """Current key of an owner, and whether the owner is being erased."""

    id: UUID
    key: AESGCM
    erasing: bool


class _Wrapped(NamedTuple):
    """Key of an owner as stored in the database."""

    id: UUID
    content: bytes
    master: str


class _Memory(Generic[K, V]):
    """LRU cache."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def stale(self, wanted: Collection[K]) -> list[K]:
        """Return those whose entries are missing or too old."""
        oldest = self._clock() - KEY_CACHE_SECONDS
        heard = self._heard
        return [one for one in wanted if one not in heard or heard[one][1] < oldest]

    def put(self, one: K, value: V) -> None:
        self._heard[one] = (value, self._clock())
        self._heard.move_to_end(one)
        if len(self._heard) > MAX_CACHED_KEYS:
            self._heard.popitem(last=False)

    def __getitem__(self, one: K) -> V:
        return self._heard[one][0]


class Keyring:
    """The port `FieldEncryption` on PostgreSQL.

    It has a pool of its own, because its callers hold connections of theirs while they wait for a
    key.
    """

    def __init__(self, pool: Pool, masters: MasterKeys) -> None:
        self._pool = pool
        self._masters = masters
        clock = asyncio.get_running_loop().time
        self._owners: _Memory[str, _Owner] = _Memory(clock)
        self._keys: _Memory[UUID, AESGCM | None] = _Memory(clock)
        self._opened: OrderedDict[UUID, tuple[bytes, AESGCM]] = OrderedDict()

    async def prepare(self, owners: Collection[str], opening: Collection[str]) -> None:
        if stale := self._owners.stale(owners):
            await self._trying(lambda connection: self._look_up(connection, stale))
        for owner in opening:
            if self._owners[owner].erasing:
                raise InvalidState(
                    "the data of this owner is being erased: try again when that is done"
                )

    def encrypt(self, owner: str, content: bytes) -> EncryptedFields:
        known, nonce = self._owners[owner], os.urandom(NONCE_BYTES)
        return EncryptedFields(known.id, nonce + known.key.encrypt(nonce, content, None))

    async def load_keys(self, keys: Collection[UUID]) -> None:
        if stale := self._keys.stale(keys):
            await self._trying(lambda connection: self._look_at(connection, stale))

    def decrypt(self, fields: EncryptedFields) -> bytes | None:
        key = self._keys[fields.key]
        if key is None:
            return None
        try:
            return key.decrypt(fields.box[:NONCE_BYTES], fields.box[NONCE_BYTES:], None)
        except InvalidTag:
            raise ValueError("they are not what was encrypted") from None

    async def _trying(self, look: Callable[[Connection], Awaitable[None]]) -> None:
        """Repeat a lookup if a master key is missing: it may have just been replaced.

        Raises Unavailable.
        """
        for left in reversed(range(MAX_CREATE_TRIES)):
            try:
                async with self._pool.connection(message=UNREADABLE) as connection:
                    await look(connection)
                return
            except NoMasterKey as error:
                if not left:
                    _log.error("master_key_is_missing", error=str(error))
                    raise Unavailable(f"the keys of owners cannot be opened: {error}") from error
            await asyncio.sleep(RETRY_PAUSE)

    async def _look_up(self, connection: Connection, owners: list[str]) -> None:
        """Return the owners' keys and create missing ones. Processes share the first one."""
        while missing := await self._heard(connection, owners):
            master = await current_master(connection)
            ids = [uuid4() for _ in missing]
            keys = [sealed_with(id, AESGCM.generate_key(256)) for id in ids]
            wrapped = await self._masters.encrypt(master, keys)
            await connection.execute(_NEW, (master, ids, missing, wrapped))
            owners = missing

    async def _heard(self, connection: Connection, owners: list[str]) -> list[str]:
        """Cache the current keys of the owners; return the owners without one."""
        cursor = await connection.execute(_OF_OWNERS, (owners,), binary=True)
        rows = await cursor.fetchall()
        opened = await self._unwrapped(
            [_Wrapped(id, wrapped, master) for _, id, wrapped, master, _ in rows if id is not None]
        )
        missing = []
        for owner, id, _, _, erasing in rows:
            if id is None:
                missing.append(owner)
            else:
                self._owners.put(owner, _Owner(id, opened[id], erasing))
        return missing

    async def _look_at(self, connection: Connection, ids: list[UUID]) -> None:
        cursor = await connection.execute(_SELECT_KEYS, (ids,), binary=True)
        found = await self._unwrapped([_Wrapped(*row) for row in await cursor.fetchall()])
        gone = [id for id in ids if id not in found]
        if gone:
            cursor = await connection.execute(_SELECT_DESTROYED, (gone,), binary=True)
            destroyed = {row[0] for row in await cursor.fetchall()}
            for id in gone:
                if id not in destroyed:  # an erased key without a requested erasure
                    _log.error("owner_key_is_missing", key=str(id))
        for id in ids:
            self._keys.put(id, found.get(id))
        for id in gone:
            self._opened.pop(id, None)

    async def _unwrapped(self, wrapped: Sequence[_Wrapped]) -> dict[UUID, AESGCM]:
        """Return decrypted keys; a key whose stored form is unchanged comes from the cache."""
        by_master: dict[str, list[_Wrapped]] = {}
        for key in wrapped:
            if self._opened.get(key.id, (None,))[0] != key.content:
                by_master.setdefault(key.master, []).append(key)
        for master, keys in by_master.items():
            contents = await self._masters.decrypt(master, [key.content for key in keys])
            for key, content in zip(keys, contents, strict=True):
                self._opened[key.id] = (key.content, AESGCM(opened_for(key.id, content)))
        found = {key.id: self._opened[key.id][1] for key in wrapped}
        while len(self._opened) > MAX_CACHED_KEYS:
            self._opened.popitem(last=False)
        return found
