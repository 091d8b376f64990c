"""Pause, resume, cancel and retry of a batch of 100,000 uploads: how soon they answer and act.

Nothing is compared: the latencies are printed, beside the budget of the design.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import uvloop

from application.append import Append, StreamAppend
from application.commands import BatchCommand, StartBatch
from application.handlers.batches import start_batch
from application.handlers.execute import CommandContext, execute
from benchmarks.databases import fresh_database
from benchmarks.measure import Ratio
from domain.batch.aggregate import Batch
from domain.event import Event
from domain.file import FileDeclaration
from domain.upload.events import (
    AttemptFailed,
    AttemptStarted,
    FileReceived,
    UploadFailed,
    UploadQueued,
)
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.jobs.orchestrator import Orchestrator
from infrastructure.jobs.rounds import orchestrator_leadership
from infrastructure.postgres.listener import Listener
from infrastructure.postgres.pool import Pool, make_pool
from infrastructure.settings import Settings

BY = "benchmark"
AT_ONCE = 500  # uploads of one append
WORKER = "benchmark-1"


def run(scale: float) -> list[Ratio]:
    uploads = int(100_000 * scale)
    with fresh_database() as url:
        uvloop.run(_run(url, uploads))
    return []


async def _run(url: str, uploads: int) -> None:
    async with _plant(url) as (pool, log):
        print(f"  {uploads:,} uploads in each batch")
        await _pause_and_cancel(pool, log, uploads)
        await _retry(pool, log, uploads)


@asynccontextmanager
async def _plant(url: str) -> AsyncIterator[tuple[Pool, PostgresEventLog]]:
    """A log and an orchestrator; no worker, so that what was released stays where it is."""
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(make_pool(url, name="benchmark", max_size=4))
        listener = await stack.enter_async_context(Listener(url))
        committer = await stack.enter_async_context(GroupCommitter(url))
        log = await stack.enter_async_context(PostgresEventLog(pool, committer))
        leadership = orchestrator_leadership(url, Settings())
        orchestrator = Orchestrator(leadership, log, listener.wakeups(), Settings(), _now)
        role = asyncio.create_task(orchestrator.run())
        try:
            yield pool, log
        finally:
            role.cancel()
            await asyncio.wait((role,))


async def _pause_and_cancel(pool: Pool, log: PostgresEventLog, uploads: int) -> None:
    id = await _batch(pool, log, uploads, _arrived)
    paused = f"SELECT paused FROM orchestration.batches WHERE batch = '{id}'"
    flying = f"SELECT count(*) = 0 FROM orchestration.members WHERE batch = '{id}' AND state IN "
    await _timed(pool, "pause", execute(log, BatchCommand(id, Batch.pause), _context()), paused)
    running = paused.replace("paused", "NOT paused", 1)
    await _timed(pool, "resume", execute(log, BatchCommand(id, Batch.resume), _context()), running)
    await _timed(
        pool,
        "cancel",
        execute(log, BatchCommand(id, Batch.cancel), _context()),
        flying + "('queued', 'processing')",
        f"SELECT state = 'completed' FROM orchestration.batches WHERE batch = '{id}'",
    )


async def _retry(pool: Pool, log: PostgresEventLog, uploads: int) -> None:
    id = await _batch(pool, log, uploads, _failed)
    await _until(
        pool, f"SELECT state = 'completed' FROM orchestration.batches WHERE batch = '{id}'"
    )
    await _timed(
        pool,
        "retry",
        execute(log, BatchCommand(id, Batch.request_retry), _context()),
        f"SELECT count(*) > 0 FROM orchestration.members WHERE batch = '{id}' AND state = 'queued'",
        f"SELECT count(*) = 0 FROM orchestration.retries WHERE batch = '{id}'",
    )


async def _timed(
    pool: Pool, name: str, command: Awaitable[object], effect: str, whole: str | None = None
) -> None:
    """Prints when the command was answered, when it had its first effect, and when all of it."""
    begun = time.perf_counter()
    await command
    told = [f"answered {1000 * (time.perf_counter() - begun):,.0f} ms"]
    await _until(pool, effect)
    told.append(f"in effect {time.perf_counter() - begun:,.2f} s")
    if whole is not None:
        await _until(pool, whole)
        told.append(f"carried out {time.perf_counter() - begun:,.1f} s")
    print(f"  {name:8} {', '.join(told)} (budget: 200 ms, 2 s)", flush=True)


async def _until(pool: Pool, condition: str) -> None:
    async with pool.connection() as connection:
        while True:
            cursor = await connection.execute(condition.encode())
            if await cursor.fetchone() == (True,):
                return
            await asyncio.sleep(0.01)


async def _batch(
    pool: Pool, log: PostgresEventLog, uploads: int, history: Callable[[], tuple[Event, ...]]
) -> UUID:
    """A sealed batch whose uploads have this history, once the orchestrator has followed it."""
    batch = (await start_batch(log, StartBatch(id=uuid4(), owner=BY), _context())).batch
    for start in range(0, uploads, AT_ONCE):
        await log.append(_chunk(batch, range(start, min(start + AT_ONCE, uploads)), history()))
    sealed = batch.seal(at=_now(), by=BY)
    await log.append(Append((StreamAppend(batch.id, None, sealed),)))
    await _until(
        pool,
        f"SELECT count(*) = {uploads} FROM orchestration.members WHERE batch = '{batch.id}'",
    )
    return batch.id


def _chunk(batch: Batch, numbers: range, history: tuple[Event, ...]) -> Append:
    at = _now()
    writes = []
    for number in numbers:
        file = FileDeclaration(path=f"{number:06}.bin", size=1)
        upload, registered = batch.register_upload(file, b"", at=at, by=BY)
        writes.append(StreamAppend(upload, 0, (*registered, *history)))
    return Append(tuple(writes))


def _arrived() -> tuple[Event, ...]:
    return (FileReceived(at=_now(), by=BY, size=1, blob="uploads/benchmark"),)


def _failed() -> tuple[Event, ...]:
    at = _now()
    failed = AttemptFailed(
        at=at,
        by=WORKER,
        number=1,
        step="checksum",
        error_type="OSError",
        message="disk error",
        permanent=True,
        duration=0.1,
        retry_at=None,
    )
    return (
        *_arrived(),
        UploadQueued(at=at, by=BY),
        AttemptStarted(at=at, by=WORKER, number=1, worker=WORKER),
        failed,
        UploadFailed(at=at, by=WORKER, step="checksum", message="disk error"),
    )


def _context() -> CommandContext:
    return CommandContext(by=BY, at=_now())


def _now() -> datetime:
    return datetime.now(UTC)
