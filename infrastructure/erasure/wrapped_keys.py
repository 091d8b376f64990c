"""Encryption of owners' keys with the current master key, and its rotation after an erasure.

Every step commits by itself and is idempotent: after a crash between any two steps, the next
process repeats them. The order keeps living keys readable: a new master key is durable before the
database names it, and an old one is destroyed only when no living key is encrypted with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

import structlog

from infrastructure.erasure.master_keys import MasterKeys, NoMasterKey, OwnerKeyCopies, OwnerKeyCopy
from infrastructure.postgres.connection import Connection, fetch_rows

KEYS_PER_CHUNK = 500  # keys of owners that are encrypted anew in one transaction

_PROOF = b"uptrail master key"

_CURRENT = "SELECT id, proof FROM audit.master_keys WHERE current"
_REGISTER = """INSERT INTO audit.master_keys (id, proof, current) VALUES (%s, %s, true)
ON CONFLICT DO NOTHING"""

# Refused where the master key is not the current one any more, which stays so until the commit.
_STILL_CURRENT = "SELECT FROM audit.master_keys WHERE id = %s AND current FOR SHARE"

_UNWRAPPED = """SELECT id, unwrapped FROM audit.owner_keys
WHERE unwrapped IS NOT NULL ORDER BY id LIMIT %s FOR UPDATE"""
_OTHERWISE = """SELECT id, wrapped, master FROM audit.owner_keys
WHERE destroyed_at IS NULL AND master <> %s ORDER BY id LIMIT %s FOR UPDATE"""
_WRAP = """UPDATE audit.owner_keys k SET wrapped = w.wrapped, master = %s, unwrapped = NULL
FROM unnest(%s::uuid[], %s::bytea[]) AS w (id, wrapped) WHERE k.id = w.id"""

_RETIRE = """UPDATE audit.master_keys SET current = false, retired_at = now()
WHERE id = %s AND current"""
_WRAPPED_ERASED = """SELECT DISTINCT m.id, m.current FROM audit.owner_keys k
JOIN audit.master_keys m ON m.id = k.master
WHERE k.owner = %s AND k.destroyed_at IS NOT NULL AND m.destroyed_at IS NULL"""
_UNUSED = """SELECT m.id FROM audit.master_keys m
WHERE NOT m.current AND m.destroyed_at IS NULL AND NOT EXISTS (
    SELECT FROM audit.owner_keys k WHERE k.master = m.id AND k.destroyed_at IS NULL)"""
_DESTROYED = "UPDATE audit.master_keys SET destroyed_at = now() WHERE id = %s"

_LIVING = """SELECT id, wrapped FROM audit.owner_keys
WHERE destroyed_at IS NULL AND master = %s ORDER BY id"""
_WRAP_LIVING = f"{_WRAP} AND k.destroyed_at IS NULL"
_DESTROY_OTHERS = """UPDATE audit.owner_keys SET wrapped = NULL, destroyed_at = now()
WHERE destroyed_at IS NULL AND wrapped IS NOT NULL AND master <> %s"""

_log = structlog.get_logger(__name__)


def sealed_with(id: UUID, key: bytes) -> bytes:
    """Return the plaintext of an owner's key with its id, which prevents swapping rows."""
    return id.bytes + key


def opened_for(id: UUID, content: bytes) -> bytes:
    """Return the owner's key. Raises NoMasterKey for a key encrypted with another id."""
    if content[:16] != id.bytes:
        raise NoMasterKey(f"the key of an owner, {id}, is that of another row")
    return content[16:]


async def ensure_master_key(
    connection: Connection, masters: MasterKeys, copies: OwnerKeyCopies | None = None
) -> None:
    """Create the first master key of a database, or check that its current one is available.

    A database restored from before an erasure names a master key that is destroyed: it gets the
    owners' keys of the copy that was made when that was replaced. Keys of owners from before there
    were master keys are encrypted with the current one. Raises NoMasterKey, psycopg.Error.
    """
    found = await fetch_rows(connection, _CURRENT)
    if not found:
        id = await masters.create()
        (proof,) = await masters.encrypt(id, [_PROOF])
        registered = await connection.execute(_REGISTER, (id, proof))
        if not registered.rowcount:  # another process was faster, perhaps on another machine
            await masters.destroy(id)
    try:
        await require_master_key(connection, masters)
    except NoMasterKey:
        if copies is None or not await _adopt(connection, masters, copies):
            raise
    await _wrap_all(connection, masters)


async def require_master_key(connection: Connection, masters: MasterKeys) -> str | None:
    """Return the id of the current master key after a test, or None if there is none yet.

    Raises NoMasterKey, psycopg.Error.
    """
    for id, proof in await fetch_rows(connection, _CURRENT):
        if await masters.decrypt(id, [proof]) != [_PROOF]:
            raise NoMasterKey(f"the master key {id} does not open what it encrypted")
        return str(id)
    return None


async def _adopt(connection: Connection, masters: MasterKeys, copies: OwnerKeyCopies) -> bool:
    """Restore the owners' keys from a copy; return whether there was one.

    Owners that the copy does not have were erased since.
    """
    ((old, _),) = await fetch_rows(connection, _CURRENT)
    copy = await asyncio.to_thread(copies.replacing, old)
    if copy is None or await masters.decrypt(copy.master, [copy.proof]) != [_PROOF]:
        return False
    async with connection.transaction():
        if not (await connection.execute(_RETIRE, (old,))).rowcount:
            return True  # another process was faster
        await connection.execute(_DESTROYED, (old,))
        await connection.execute(_REGISTER, (copy.master, copy.proof))
        ids = [id for id, _ in copy.keys]
        wrapped = [content for _, content in copy.keys]
        await connection.execute(_WRAP_LIVING, (copy.master, ids, wrapped))
        erased = await connection.execute(_DESTROY_OTHERS, (copy.master,))
    _log.warning(
        "owner_keys_restored",
        master=copy.master,
        erased_since=erased.rowcount,
        advice="ask again for the erasures since the backup",
    )
    return True


async def current_master(connection: Connection) -> str:
    """Return the id of the master key that encrypts new keys."""
    ((id, _),) = await fetch_rows(connection, _CURRENT)
    return str(id)


async def destroy_masters_of(
    connection: Connection, masters: MasterKeys, owner: str, copies: OwnerKeyCopies | None = None
) -> None:
    """Destroy every master key with which a destroyed key of this owner was encrypted.

    The keys of the others are encrypted with a new one first, and copied beside it: a backup of the
    database from before can be read with them. Raises NoMasterKey, OSError, psycopg.Error.
    """
    pending = await fetch_rows(connection, _WRAPPED_ERASED, owner)
    if not pending:
        return
    for id, is_current in pending:
        if is_current:
            await _replace(connection, masters, id)
    new = await current_master(connection)
    while await _rewrap(connection, masters, new):
        pass
    if copies is not None:
        await asyncio.to_thread(copies.write, await _copy(connection))
    for (id,) in await fetch_rows(connection, _UNUSED):
        await masters.destroy(id)
        await connection.execute(_DESTROYED, (id,))


async def _copy(connection: Connection) -> OwnerKeyCopy:
    ((master, proof),) = await fetch_rows(connection, _CURRENT)
    replaced = await fetch_rows(connection, "SELECT id FROM audit.master_keys WHERE NOT current")
    keys = await fetch_rows(connection, _LIVING, master)
    return OwnerKeyCopy(master, proof, [row[0] for row in replaced], [(id, w) for id, w in keys])


async def _replace(connection: Connection, masters: MasterKeys, old: str) -> None:
    new = await masters.create()
    (proof,) = await masters.encrypt(new, [_PROOF])
    async with connection.transaction():
        retired = await connection.execute(_RETIRE, (old,))
        if retired.rowcount:
            await connection.execute(_REGISTER, (new, proof))
    if not retired.rowcount:
        await masters.destroy(new)
        return
    _log.info("master_key_replaced", old=old, new=new)


async def _rewrap(connection: Connection, masters: MasterKeys, new: str) -> bool:
    """Encrypt the next keys with the new master key; return whether there were any."""
    async with connection.transaction():
        found = await fetch_rows(connection, _OTHERWISE, new, KEYS_PER_CHUNK)
        by_master: dict[str, list[tuple[UUID, bytes]]] = {}
        for id, wrapped, master in found:
            by_master.setdefault(master, []).append((id, wrapped))
        for master, keys in by_master.items():
            contents = await masters.decrypt(master, [wrapped for _, wrapped in keys])
            await _save(connection, masters, new, [id for id, _ in keys], contents)
    return bool(found)


async def _wrap_all(connection: Connection, masters: MasterKeys) -> None:
    wrapped = 0
    while True:
        async with connection.transaction():
            found = await fetch_rows(connection, _UNWRAPPED, KEYS_PER_CHUNK)
            if not found:
                break
            master = await current_master(connection)
            if await fetch_rows(connection, _STILL_CURRENT, master):
                contents = [sealed_with(id, key) for id, key in found]
                await _save(connection, masters, master, [id for id, _ in found], contents)
                wrapped += len(found)
    if wrapped:
        await connection.execute("VACUUM FULL audit.owner_keys")  # they are in its free space
        _log.info("owner_keys_wrapped", keys=wrapped)


async def _save(
    connection: Connection,
    masters: MasterKeys,
    master: str,
    ids: Sequence[UUID],
    contents: Sequence[bytes],
) -> None:
    wrapped = await masters.encrypt(master, contents)
    await connection.execute(_WRAP, (master, list(ids), wrapped))
