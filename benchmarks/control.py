"""Latency of pause, resume, cancel and retry for a batch of 100,000 uploads.

No peer is measured: latencies are printed beside their budgets.
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
    async with _running_orchestrator(url) as (pool, log):
        print(f"  {uploads:,} uploads in each batch")
        await _pause_and_cancel(pool, log, uploads)
        await _retry(pool, log, uploads)


@asynccontextmanager
async def _running_orchestrator(url: str) -> AsyncIterator[tuple[Pool, PostgresEventLog]]:
    """Run an orchestrator without a worker, so that released uploads stay queued."""
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
    id = await _start_batch_with(pool, log, uploads, _received_history)
    paused = f"SELECT paused FROM orchestration.batches WHERE batch = '{id}'"
    flying = f"SELECT count(*) = 0 FROM orchestration.members WHERE batch = '{id}' AND state IN "
    await _time_command(
        pool, "pause", execute(log, BatchCommand(id, Batch.pause), _context()), paused
    )
    running = paused.replace("paused", "NOT paused", 1)
    await _time_command(
        pool, "resume", execute(log, BatchCommand(id, Batch.resume), _context()), running
    )
    await _time_command(
        pool,
        "cancel",
        execute(log, BatchCommand(id, Batch.cancel), _context()),
        flying + "('queued', 'processing')",
        f"SELECT state = 'completed' FROM orchestration.batches WHERE batch = '{id}'",
    )


async def _retry(pool: Pool, log: PostgresEventLog, uploads: int) -> None:
    id = await _start_batch_with(pool, log, uploads, _failed_history)
    await _wait_until(
        pool, f"SELECT state = 'completed' FROM orchestration.batches WHERE batch = '{id}'"
    )
    await _time_command(
        pool,
        "retry",
        execute(log, BatchCommand(id, Batch.request_retry), _context()),
        f"SELECT count(*) > 0 FROM orchestration.members WHERE batch = '{id}' AND state = 'queued'",
        f"SELECT count(*) = 0 FROM orchestration.retries WHERE batch = '{id}'",
    )


async def _time_command(
    pool: Pool, name: str, command: Awaitable[object], effect: str, done: str | None = None
) -> None:
    """Print the time to the response, to the first effect and to the completed command."""
    begun = time.perf_counter()
    await command
    times = [f"answered {1000 * (time.perf_counter() - begun):,.0f} ms"]
    await _wait_until(pool, effect)
    times.append(f"in effect {time.perf_counter() - begun:,.2f} s")
    if done is not None:
        await _wait_until(pool, done)
        times.append(f"carried out {time.perf_counter() - begun:,.1f} s")
    print(f"  {name:8} {', '.join(times)} (budget: 200 ms, 2 s)", flush=True)


async def _wait_until(pool: Pool, condition: str) -> None:
    async with pool.connection() as connection:
        while True:
            cursor = await connection.execute(condition.encode())
            if await cursor.fetchone() == (True,):
                return
            await asyncio.sleep(0.01)


async def _start_batch_with(
    pool: Pool, log: PostgresEventLog, uploads: int, history: Callable[[], tuple[Event, ...]]
) -> UUID:
    """Create a sealed batch of uploads with this history; wait for the orchestrator."""
    batch = (await start_batch(log, StartBatch(id=uuid4(), owner=BY), _context())).batch
    for start in range(0, uploads, AT_ONCE):
        await log.append(_chunk(batch, range(start, min(start + AT_ONCE, uploads)), history()))
    sealed = batch.seal(at=_now(), by=BY)
    await log.append(Append((StreamAppend(batch.id, None, sealed),)))
    await _wait_until(
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


def _received_history() -> tuple[Event, ...]:
    return (FileReceived(at=_now(), by=BY, size=1, blob="uploads/benchmark"),)


def _failed_history() -> tuple[Event, ...]:
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
        *_received_history(),
        UploadQueued(at=at, by=BY),
        AttemptStarted(at=at, by=WORKER, number=1, worker=WORKER),
        failed,
        UploadFailed(at=at, by=WORKER, step="checksum", message="disk error"),
    )


def _context() -> CommandContext:
    return CommandContext(by=BY, at=_now())


def _now() -> datetime:
    return datetime.now(UTC)
