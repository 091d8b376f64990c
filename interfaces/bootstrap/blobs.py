"""The blob store of this process: a folder, or a bucket where the settings name one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from application.ports.blobs import BlobInventory, BlobStore
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.settings import Settings


class Blobs(BlobStore, BlobInventory, Protocol):
    """What every blob store of ours is."""


def blob_place(settings: Settings) -> str:
    """Where the bytes are, for people: no setting of a bucket is shown beyond its name."""
    return (settings.blob_bucket or str(settings.blob_dir)).partition("?")[0]


@asynccontextmanager
async def open_blobs(settings: Settings, database_url: str) -> AsyncIterator[Blobs]:
    """Ready to be used. Raises OSError, BadLocation, BadBlobStore."""
    if settings.blob_bucket is None:
        local = LocalBlobStore(settings.blob_dir)
        try:
            yield local
        finally:
            local.close()
        return
    from infrastructure.blobs.s3.location import parse_location
    from infrastructure.blobs.s3.locks import PostgresLocks
    from infrastructure.blobs.s3.opening import open_s3_blobs

    location = parse_location(settings.blob_bucket)
    async with (
        PostgresLocks(database_url) as locks,
        open_s3_blobs(location, locks, largest=settings.max_file_size) as store,
    ):
        yield store
