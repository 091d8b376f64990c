"""The port `Workers`: the queue's heartbeats beside the orchestrator's open attempts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout

from application.errors import Unavailable
from application.ports.workers import OpenAttempt, WorkerView
from infrastructure.postgres.pool import Connection, Pool

MOST_WORKERS = 1000
MOST_ATTEMPTS = 10_000

# The heartbeat is judged by the clock of the server, which also wrote it.
_WORKERS = f"""
SELECT w.id, w.last_heartbeat, w.last_heartbeat > now() - make_interval(secs => %s),
  (SELECT count(*) FROM procrastinate_jobs j WHERE j.worker_id = w.id AND j.status = 'doing')
FROM procrastinate_workers w ORDER BY w.id LIMIT {MOST_WORKERS}"""  # noqa: S608

_ATTEMPTS = f"""
SELECT m.worker, m.upload, m.batch, m.attempt, a.started_at, a.step, a.percent
FROM orchestration.members m
LEFT JOIN read_model.attempts a ON a.upload = m.upload AND a.number = m.attempt
WHERE m.state = 'processing' AND (m.owner = %(owner)s OR %(owner)s::text IS NULL)
ORDER BY m.worker, m.upload LIMIT {MOST_ATTEMPTS}"""  # noqa: S608


class PostgresWorkers:
    """`dead_after` is the silence, in seconds, after which a worker counts as dead."""

    def __init__(self, pool: Pool, dead_after: float) -> None:
        self._pool = pool
        self._dead_after = dead_after

    async def workers(self, *, owner: str | None) -> Sequence[WorkerView]:
        try:
            async with self._pool.connection() as connection:
                held = await _held(connection, owner)
                cursor = await connection.execute(_WORKERS, (self._dead_after,))
                rows = await cursor.fetchall()
        except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
            raise Unavailable(f"the database cannot be reached: {error}") from error
        return [*_known(rows, held), *_gone(held)]


async def _held(connection: Connection, owner: str | None) -> dict[str, list[OpenAttempt]]:
    cursor = await connection.execute(_ATTEMPTS, {"owner": owner})
    held: dict[str, list[OpenAttempt]] = {}
    for worker, upload, batch, number, started_at, step, percent in await cursor.fetchall():
        held.setdefault(worker, []).append(
            OpenAttempt(
                upload=upload,
                batch=batch,
                number=number,
                started_at=started_at,
                step=step,
                percent=percent,
            )
        )
    return held


def _known(
    rows: Iterable[tuple[Any, ...]], held: dict[str, list[OpenAttempt]]
) -> Iterable[WorkerView]:
    """Workers that the queue knows; their attempts are taken out of `held`."""
    names = {name.rpartition("-")[2]: name for name in held}
    for id, last_heartbeat, alive, jobs in rows:
        name = names.get(str(id))
        yield WorkerView(
            id=id,
            name=name,
            alive=alive,
            last_heartbeat=last_heartbeat,
            jobs=jobs,
            attempts=held.pop(name) if name else [],
        )


def _gone(held: dict[str, list[OpenAttempt]]) -> Iterable[WorkerView]:
    """Workers that the queue has forgotten: the attempts they hold are about to be abandoned."""
    for name, attempts in held.items():
        yield WorkerView(
            id=None, name=name, alive=False, last_heartbeat=None, jobs=0, attempts=attempts
        )
