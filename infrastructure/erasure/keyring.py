"""The keys of owners, as far as this process needs them at the moment.

AES-256-GCM (NIST SP 800-38D) with a random nonce of 12 bytes before each ciphertext: one key may do
so for some 2^32 events.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Generic, NamedTuple, TypeVar
from uuid import UUID, uuid4

import psycopg
import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from psycopg_pool import PoolTimeout

from application.errors import Unavailable
from domain.errors import NotNow
from infrastructure.event_store.personal import Box
from infrastructure.postgres.pool import Connection, Pool

FRESH = 5.0  # seconds after which a key is asked for anew: it may have been destroyed elsewhere
KNOWN = 10_000  # owners, and keys, that are remembered
NONCE = 12  # bytes

_NEW = """INSERT INTO audit.owner_keys (id, owner, key)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::bytea[])
ON CONFLICT (owner) WHERE key IS NOT NULL DO NOTHING"""

_OF_OWNERS = """SELECT wanted.owner, k.id, k.key, e.id IS NOT NULL
FROM unnest(%s::text[]) AS wanted (owner)
LEFT JOIN audit.owner_keys k ON k.owner = wanted.owner AND k.key IS NOT NULL
LEFT JOIN audit.erasures e ON e.owner = wanted.owner AND e.finished_at IS NULL"""

_BY_ID = "SELECT id, key FROM audit.owner_keys WHERE id = ANY(%s)"

_log = structlog.get_logger(__name__)

K = TypeVar("K")
V = TypeVar("V")


class _Owner(NamedTuple):
    """The key that an owner's events are encrypted with, and whether the owner is being erased."""

    id: UUID
    key: AESGCM
    erasing: bool


class _Memory(Generic[K, V]):
    """What was heard lately, the least recently heard forgotten first."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heard: OrderedDict[K, tuple[V, float]] = OrderedDict()

    def stale(self, wanted: Collection[K]) -> list[K]:
        """Those not heard of for a while."""
        oldest = self._clock() - FRESH
        heard = self._heard
        return [one for one in wanted if one not in heard or heard[one][1] < oldest]

    def hear(self, one: K, value: V) -> None:
        self._heard[one] = (value, self._clock())
        self._heard.move_to_end(one)
        if len(self._heard) > KNOWN:
            self._heard.popitem(last=False)

    def __getitem__(self, one: K) -> V:
        return self._heard[one][0]


class Keyring:
    """The port `Protection` on PostgreSQL; the pool is its own, since its callers hold
    connections of theirs while they wait for a key."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        clock = asyncio.get_running_loop().time
        self._owners: _Memory[str, _Owner] = _Memory(clock)
        self._keys: _Memory[UUID, AESGCM | None] = _Memory(clock)

    async def prepare(self, owners: Collection[str], beginning: Collection[str]) -> None:
        if stale := self._owners.stale(owners):
            await self._look_up(stale)
        for owner in beginning:
            if self._owners[owner].erasing:
                raise NotNow("the data of this owner is being erased: try again when that is done")

    def close(self, owner: str, content: bytes) -> Box:
        known, nonce = self._owners[owner], os.urandom(NONCE)
        return Box(known.id, nonce + known.key.encrypt(nonce, content, None))

    async def learn(self, keys: Collection[UUID]) -> None:
        if not (stale := self._keys.stale(keys)):
            return
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute(_BY_ID, (stale,), binary=True)
                found: dict[UUID, bytes | None] = dict(await cursor.fetchall())
        except _LOST as error:
            raise Unavailable(f"the keys of owners cannot be reached: {error}") from error
        for id in stale:
            if id not in found:  # what it encrypted reads as erased, which nobody asked for
                _log.error("owner_key_is_missing", key=str(id))
            key = found.get(id)
            self._keys.hear(id, None if key is None else AESGCM(key))

    def open(self, box: Box) -> bytes | None:
        key = self._keys[box.key]
        if key is None:
            return None
        try:
            return key.decrypt(box.box[:NONCE], box.box[NONCE:], None)
        except InvalidTag:
            raise ValueError("they are not what was encrypted") from None

    async def _look_up(self, owners: list[str]) -> None:
        """Whoever has no key gets one; of two processes that make one at once, both use the
        first."""
        try:
            async with self._pool.connection() as connection:
                while missing := await self._heard(connection, owners):
                    keys = [AESGCM.generate_key(256) for _ in missing]
                    ids = [uuid4() for _ in missing]
                    await connection.execute(_NEW, (ids, missing, keys))
                    owners = missing
        except _LOST as error:
            raise Unavailable(f"the keys of owners cannot be reached: {error}") from error

    async def _heard(self, connection: Connection, owners: list[str]) -> list[str]:
        """Takes note of the owners' keys, and returns the owners that have none."""
        cursor = await connection.execute(_OF_OWNERS, (owners,), binary=True)
        missing = []
        for owner, id, key, erasing in await cursor.fetchall():
            if key is None:
                missing.append(owner)
            else:
                self._owners.hear(owner, _Owner(id, AESGCM(key), erasing))
        return missing


_LOST = (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout)
