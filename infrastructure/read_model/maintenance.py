"""One rebuild or verification at a time, whichever process it runs in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infrastructure.postgres.pool import Connection
from infrastructure.read_model.projecting import connect_writer

MAINTENANCE = 0x75707472_0004  # "uptr", 4: the advisory lock


@asynccontextmanager
async def maintenance(url: str, *, name: str) -> AsyncIterator[Connection]:
    """A connection for writing rows, once nobody else maintains the read model."""
    connection = await connect_writer(url, name=name)
    try:
        await connection.execute("SELECT pg_advisory_lock(%s)", (MAINTENANCE,))
        yield connection
    finally:
        await connection.close()
