"""Identity of a blob store, and the names that blobs may have.

A store and its database have one identity. Otherwise a machine with another folder, or whose shared
folder is not mounted, would accept uploads that no worker can process.
"""

from __future__ import annotations

import re
from uuid import uuid4

from application.ports.blobs import BlobMissing, BlobStore
from infrastructure.postgres.connection import Connection

MARK = "store-id"  # the blob that carries it; the sweeper looks at those of uploads alone
LONGEST = 100  # characters

_LOCK = "LOCK TABLE orchestration.blob_store IN EXCLUSIVE MODE"
_READ = "SELECT mark FROM orchestration.blob_store"
_WRITE = "INSERT INTO orchestration.blob_store (mark) VALUES (%s)"


class BlobStoreMismatch(Exception):
    """The blob store belongs to another database."""

    def __init__(self, place: str, found: str | None) -> None:
        has = "holds those of another database" if found else "holds none of them"
        super().__init__(f"the bytes of this database are not in {place}, which {has}")
        self.hint = (
            "mount or name the folder or bucket that the other machines use (--blobs or"
            " UPTRAIL_BLOBS); if this is the right one, let the database forget the other:"
            " DELETE FROM orchestration.blob_store"
        )


async def check_store_identity(connection: Connection, blobs: BlobStore, place: str) -> None:
    """Compare the identities; set both if the database has none yet.

    Of processes that start at once, one sets them. `place` is shown in the error. Raises
    BlobStoreMismatch, Unavailable, psycopg.Error.
    """
    async with connection.transaction():
        await connection.execute(_LOCK)
        wanted, found = await _wanted(connection), await _found(blobs)
        if wanted is None:
            mark = found or uuid4().hex
            if found is None:
                await blobs.put(MARK, mark.encode())
            await connection.execute(_WRITE, (mark,))
        elif found != wanted:
            raise BlobStoreMismatch(place, found)


async def identity_matches(connection: Connection, blobs: BlobStore) -> bool | None:
    """Return whether the identities agree; None if the database has none. Writes nothing."""
    wanted = await _wanted(connection)
    return None if wanted is None else await _found(blobs) == wanted


async def _wanted(connection: Connection) -> str | None:
    row = await (await connection.execute(_READ)).fetchone()
    return row[0] if row else None


async def _found(blobs: BlobStore) -> str | None:
    try:
        chunks = [chunk async for chunk in blobs.read(MARK, 0, LONGEST)]
    except BlobMissing:
        return None
    return b"".join(chunks).decode(errors="replace").strip() or None


# What a blob may be called: names that can lead nowhere else, in a folder or in a bucket.

MAX_NAME = 250

_NAME = re.compile(r"[a-z0-9-][a-z0-9.-]*(/[a-z0-9-][a-z0-9.-]*)*")


def validate_blob_name(name: str) -> str:
    """Return the name. Raises ValueError for a name that could lead to another folder."""
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a blob")
    return name
