"""How each server process says that it is there: a row of its own, touched every few seconds."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from uuid import uuid4

import msgspec
import psycopg
import structlog
from psycopg_pool import PoolTimeout

from infrastructure.database_errors import is_transient
from infrastructure.postgres.pool import Pool

FORGOTTEN = 3600.0  # seconds of silence after which a row goes
PATIENCE = 1.0  # seconds to take the own row away

_TOUCH = """
INSERT INTO orchestration.processes (id, machine, pid, roles, version, worker, leads)
VALUES (%(id)s, %(machine)s, %(pid)s, %(roles)s, %(version)s, %(worker)s, %(leads)s)
ON CONFLICT (id) DO UPDATE
SET seen_at = now(), worker = excluded.worker, leads = excluded.leads"""
_FORGET = "DELETE FROM orchestration.processes WHERE id = %s"
_FORGET_SILENT = """
DELETE FROM orchestration.processes WHERE seen_at < now() - make_interval(secs => %s)"""

_log = structlog.get_logger(__name__)


class Standing(msgspec.Struct):
    """What a process is at this moment, as its parts know: asked anew at every touch."""

    leads: Callable[[], bool] = lambda: False
    worker: Callable[[], int | None] = lambda: None


class Presence:
    """The row of this process; `interval` is the time between two touches, in seconds."""

    def __init__(
        self, pool: Pool, roles: Sequence[str], standing: Standing, interval: float
    ) -> None:
        self._pool = pool
        self._id = uuid4()
        self._roles = list(roles)
        self._standing = standing
        self._interval = interval

    async def run(self) -> None:
        """Until cancelled; then the row is gone. A database that is away is waited for."""
        try:
            while True:
                try:
                    await self._touch()
                except Exception as error:
                    if not is_transient(error):
                        raise
                    _log.warning("presence_not_told", error=str(error))
                await asyncio.sleep(self._interval)
        finally:
            with suppress(psycopg.Error, PoolTimeout, TimeoutError):
                async with asyncio.timeout(PATIENCE), self._pool.connection() as connection:
                    await connection.execute(_FORGET, (self._id,))

    async def _touch(self) -> None:
        row = {
            "id": self._id,
            "machine": socket.gethostname(),
            "pid": os.getpid(),
            "roles": self._roles,
            "version": version("uptrail"),
            "worker": self._standing.worker(),
            "leads": self._standing.leads(),
        }
        async with self._pool.connection() as connection:
            await connection.execute(_TOUCH, row)
            await connection.execute(_FORGET_SILENT, (FORGOTTEN,))
