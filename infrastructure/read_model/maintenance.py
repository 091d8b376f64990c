"""Exclusive access for a rebuild or a verification of the read model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import MAINTENANCE_LOCK
from infrastructure.read_model.projector import connect_writer


@asynccontextmanager
async def exclusive_maintenance(url: str, *, name: str) -> AsyncIterator[Connection]:
    """Wait for other rebuilds and verifications of any process, and return a connection for writing
    rows."""
    connection = await connect_writer(url, name=name)
    try:
        await MAINTENANCE_LOCK.acquire(connection)
        yield connection
    finally:
        await connection.close()
