"""The port `Workers`: the queue's heartbeats, the orchestrator's open attempts, the processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from application.ports.workers import OpenAttempt, ProcessView, WorkerView
from infrastructure.postgres.pool import Connection, Pool, borrowed

MOST_WORKERS = 1000
MOST_ATTEMPTS = 10_000

# The heartbeat is judged by the clock of the server, which also wrote it.
_WORKERS = f"""
SELECT w.id, w.last_heartbeat, w.last_heartbeat > now() - make_interval(secs => %s),
  (SELECT count(*) FROM procrastinate_jobs j WHERE j.worker_id = w.id AND j.status = 'doing'),
  (SELECT concat_ws('-', p.machine, p.pid, w.id) FROM orchestration.processes p
   WHERE p.worker = w.id LIMIT 1)
FROM procrastinate_workers w ORDER BY w.id LIMIT {MOST_WORKERS}"""  # noqa: S608

_PROCESSES = f"""
SELECT id, machine, pid, roles, version, started_at, seen_at,
  seen_at > now() - make_interval(secs => %s), leads, worker
FROM orchestration.processes ORDER BY machine, started_at, pid
LIMIT {MOST_WORKERS}"""  # noqa: S608

_ATTEMPTS = f"""
SELECT m.worker, m.upload, m.batch, m.attempt, a.started_at, a.step, a.percent
FROM orchestration.active_members v
JOIN orchestration.members m ON m.upload = v.upload
LEFT JOIN read_model.attempts a ON a.upload = m.upload AND a.number = m.attempt
WHERE v.kind = 'flight' AND m.state = 'processing'
  AND (m.owner = %(owner)s OR %(owner)s::text IS NULL)
ORDER BY m.worker, m.upload LIMIT {MOST_ATTEMPTS}"""  # noqa: S608


class PostgresWorkers:
    """`dead_after` is the silence, in seconds, after which a worker counts as dead."""

    def __init__(self, pool: Pool, dead_after: float) -> None:
        self._pool = pool
        self._dead_after = dead_after

    async def workers(self, *, owner: str | None) -> Sequence[WorkerView]:
        async with self._connection() as connection:
            held = await _held(connection, owner)
            cursor = await connection.execute(_WORKERS, (self._dead_after,))
            rows = await cursor.fetchall()
        return [*_known(rows, held), *_gone(held)]

    async def processes(self) -> Sequence[ProcessView]:
        async with self._connection() as connection:
            rows = await (await connection.execute(_PROCESSES, (self._dead_after,))).fetchall()
        names = ProcessView.__struct_fields__
        return [ProcessView(**dict(zip(names, row, strict=True))) for row in rows]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with borrowed(self._pool) as connection:
            yield connection


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
    for id, last_heartbeat, alive, jobs, told in rows:
        name = names.get(str(id))
        yield WorkerView(
            id=id,
            name=name or told,
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
