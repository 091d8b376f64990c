"""Heartbeat of each server process: a row that it updates every few seconds."""

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

from application.errors import Unavailable
from infrastructure.postgres.pool import Pool

MAX_SILENCE = 3600.0  # seconds without a heartbeat after which a row is deleted
SIGN_OFF_TIMEOUT = 1.0  # seconds for the deletion of the own row

_BEAT = """
INSERT INTO orchestration.processes (id, machine, pid, roles, version, worker, leads)
VALUES (%(id)s, %(machine)s, %(pid)s, %(roles)s, %(version)s, %(worker)s, %(leads)s)
ON CONFLICT (id) DO UPDATE
SET seen_at = now(), worker = excluded.worker, leads = excluded.leads"""
_DELETE = "DELETE FROM orchestration.processes WHERE id = %s"
_DELETE_SILENT = """
DELETE FROM orchestration.processes WHERE seen_at < now() - make_interval(secs => %s)"""

_log = structlog.get_logger(__name__)


class ProcessStatus(msgspec.Struct):
    """State of this process that a heartbeat reports: its parts replace these functions."""

    leads: Callable[[], bool] = lambda: False
    worker: Callable[[], int | None] = lambda: None


class ProcessHeartbeat:
    """The row of this process, updated every `interval` seconds."""

    def __init__(
        self, pool: Pool, roles: Sequence[str], status: ProcessStatus, interval: float
    ) -> None:
        self._pool = pool
        self._id = uuid4()
        self._roles = list(roles)
        self._status = status
        self._interval = interval

    async def run(self) -> None:
        """Update the row until cancelled, also after an outage of the database; then delete it."""
        try:
            while True:
                try:
                    await self._beat()
                except Unavailable as error:
                    _log.warning("heartbeat_failed", error=str(error))
                await asyncio.sleep(self._interval)
        finally:
            with suppress(psycopg.Error, Unavailable, TimeoutError):
                async with asyncio.timeout(SIGN_OFF_TIMEOUT), self._pool.connection() as connection:
                    await connection.execute(_DELETE, (self._id,))

    async def _beat(self) -> None:
        row = {
            "id": self._id,
            "machine": socket.gethostname(),
            "pid": os.getpid(),
            "roles": self._roles,
            "version": version("uptrail"),
            "worker": self._status.worker(),
            "leads": self._status.leads(),
        }
        async with self._pool.connection() as connection:
            await connection.execute(_BEAT, row)
            await connection.execute(_DELETE_SILENT, (MAX_SILENCE,))
