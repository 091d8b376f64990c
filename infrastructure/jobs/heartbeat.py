"""Heartbeats of server processes, and the status of processes and workers by their heartbeats."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any
from uuid import uuid4

import msgspec
import psycopg
import structlog

from application.errors import Unavailable
from application.ports.jobs import OpenAttempt, ProcessView, WorkerView
from infrastructure.postgres.connection import Connection
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


MAX_WORKERS = 1000
MAX_ATTEMPTS = 10_000

# The clock of the server also wrote the heartbeats.
_WORKERS = f"""
SELECT w.id, w.last_heartbeat, w.last_heartbeat > now() - make_interval(secs => %s),
  (SELECT count(*) FROM procrastinate_jobs j WHERE j.worker_id = w.id AND j.status = 'doing'),
  (SELECT concat_ws('-', p.machine, p.pid, w.id) FROM orchestration.processes p
   WHERE p.worker = w.id LIMIT 1)
FROM procrastinate_workers w ORDER BY w.id LIMIT {MAX_WORKERS}"""  # noqa: S608

_PROCESSES = f"""
SELECT id, machine, pid, roles, version, started_at, seen_at,
  seen_at > now() - make_interval(secs => %s), leads, worker
FROM orchestration.processes ORDER BY machine, started_at, pid
LIMIT {MAX_WORKERS}"""  # noqa: S608

_ATTEMPTS = f"""
SELECT m.worker, m.upload, m.batch, m.attempt, a.started_at, a.step, a.percent
FROM orchestration.active_members v
JOIN orchestration.members m ON m.upload = v.upload
LEFT JOIN read_model.attempts a ON a.upload = m.upload AND a.number = m.attempt
WHERE v.kind = 'flight' AND m.state = 'processing'
  AND (m.owner = %(owner)s OR %(owner)s::text IS NULL)
ORDER BY m.worker, m.upload LIMIT {MAX_ATTEMPTS}"""  # noqa: S608


class PostgresWorkers:
    """The port `Workers`. A worker without a heartbeat for `dead_after` seconds counts as dead."""

    def __init__(self, pool: Pool, dead_after: float) -> None:
        self._pool = pool
        self._dead_after = dead_after

    async def workers(self, *, owner: str | None) -> Sequence[WorkerView]:
        async with self._pool.connection() as connection:
            attempts = await _attempts_by_worker(connection, owner)
            cursor = await connection.execute(_WORKERS, (self._dead_after,))
            rows = await cursor.fetchall()
        return [*_registered(rows, attempts), *_unregistered(attempts)]

    async def processes(self) -> Sequence[ProcessView]:
        async with self._pool.connection() as connection:
            rows = await (await connection.execute(_PROCESSES, (self._dead_after,))).fetchall()
        names = ProcessView.__struct_fields__
        return [ProcessView(**dict(zip(names, row, strict=True))) for row in rows]


async def _attempts_by_worker(
    connection: Connection, owner: str | None
) -> dict[str, list[OpenAttempt]]:
    cursor = await connection.execute(_ATTEMPTS, {"owner": owner})
    attempts: dict[str, list[OpenAttempt]] = {}
    for worker, upload, batch, number, started_at, step, percent in await cursor.fetchall():
        attempts.setdefault(worker, []).append(
            OpenAttempt(
                upload=upload,
                batch=batch,
                number=number,
                started_at=started_at,
                step=step,
                percent=percent,
            )
        )
    return attempts


def _registered(
    rows: Iterable[tuple[Any, ...]], attempts: dict[str, list[OpenAttempt]]
) -> Iterable[WorkerView]:
    """Yield the workers that the queue knows, and take their attempts out of `attempts`."""
    names = {name.rpartition("-")[2]: name for name in attempts}
    for id, last_heartbeat, alive, jobs, process_name in rows:
        name = names.get(str(id))
        yield WorkerView(
            id=id,
            name=name or process_name,
            alive=alive,
            last_heartbeat=last_heartbeat,
            jobs=jobs,
            attempts=attempts.pop(name) if name else [],
        )


def _unregistered(attempts: dict[str, list[OpenAttempt]]) -> Iterable[WorkerView]:
    """Yield the workers that the queue has deleted: their attempts are about to be abandoned."""
    for name, held in attempts.items():
        yield WorkerView(
            id=None, name=name, alive=False, last_heartbeat=None, jobs=0, attempts=held
        )
