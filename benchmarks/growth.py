"""Cost per file of orchestrator and worker, in batches of 1,000, 10,000 and 100,000 files.

No peer is measured: the largest batch is compared with the smallest. Costs are
processor time, which a busy machine blurs less than it does the clock.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from uuid import UUID, uuid4

import psycopg
import uvloop

from application.append import Append, StreamAppend
from application.commands import StartBatch
from application.handlers.batches import start_batch
from application.handlers.execute import CommandContext
from benchmarks import cpu
from benchmarks.databases import fresh_database
from benchmarks.measure import Ratio
from domain.batch.aggregate import Batch
from domain.file import FileDeclaration
from domain.upload.events import FileReceived
from infrastructure.blobs.local.store import LocalBlobStore
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.pool import make_pool

SIZES = (1_000, 10_000, 100_000)
WARM_UP = 500  # files
FLAT = 1 / 1.3  # the budget of the design for growth
BY = "benchmark"
AT_ONCE = 250  # files of one append
BLOB = "uploads/benchmark"  # all files share one blob, which changes no cost
TEXT = b"All work and no play makes Jack a dull boy.\n" * 233  # 10 KiB
COMPLETION_TIMEOUT = 1800.0  # seconds for one batch
POLL_INTERVAL = 0.05  # seconds

_DONE = """SELECT b.state = 'completed' AND r.state = 'completed'
FROM orchestration.batches b JOIN read_model.batches r ON r.id = b.batch WHERE b.batch = %s"""

Meter = Callable[[], float]
"""Seconds of processor time taken so far."""


class Cost(NamedTuple):
    """Milliseconds per file: processor time by component, and elapsed time."""

    by: dict[str, float]
    clock: float

    def __str__(self) -> str:
        times = ", ".join(f"{name} {ms:.2f} ms" for name, ms in self.by.items())
        return f"{times} a file; {1000 / self.clock:,.0f} files/s"


def run(scale: float) -> list[Ratio]:
    sizes = SIZES if scale == 1.0 else SIZES[:2]
    with ExitStack() as stack:
        url = stack.enter_context(fresh_database())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        meters: dict[str, Meter] = {
            role: stack.enter_context(running_role(role, url, folder))
            for role in ("orchestrator", "worker")
        }
        meters["PostgreSQL"] = _server_of(url)
        _measured(url, folder, WARM_UP, meters)
        costs = {}
        for size in sizes:
            costs[size] = _measured(url, folder, size, meters)
            print(f"  {size:7,} files: {costs[size]}", flush=True)
    least = costs[sizes[0]].by
    return [
        Ratio(
            f"{name}, batch of {size:,}",
            "files/s of its processor time",
            1000 / cost,
            f"a batch of {sizes[0]:,}",
            1000 / least[name],
            FLAT,
        )
        for size in sizes[1:]
        for name, cost in costs[size].by.items()
    ]


@contextmanager
def running_role(role: str, url: str, folder: Path) -> Iterator[Meter]:
    """Run one role in a process; that of the orchestrator includes the projector."""
    command = [str(Path(sys.executable).parent / "uptrail"), "serve", "--role", role]
    command += ["--database-url", url, "--blobs", str(folder / "blobs")]
    command += ["--data-dir", str(folder / role)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("UPTRAIL_")}
    environment["UPTRAIL_LOG_LEVEL"] = "warning"
    environment["UPTRAIL_MASTER_KEYS"] = str(folder / "master-keys")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    try:
        yield lambda: cpu.of_process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _server_of(url: str) -> Meter:
    """Return a meter of all processes of the local PostgreSQL server."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        postmaster = cpu.parent(row[0])
    return lambda: cpu.of_family(postmaster)


def _measured(url: str, folder: Path, files: int, meters: dict[str, Meter]) -> Cost:
    """Measure a batch from its start to its outcome in the read model."""
    before = {name: meter() for name, meter in meters.items()}
    begun = time.perf_counter()
    uvloop.run(_batch(url, folder, files))
    clock = time.perf_counter() - begun
    taken = {name: meter() - before[name] for name, meter in meters.items()}
    return Cost({name: 1000 * s / files for name, s in taken.items()}, 1000 * clock / files)


async def _batch(url: str, folder: Path, files: int) -> None:
    blobs = LocalBlobStore(folder / "blobs")
    await blobs.put(BLOB, TEXT)
    blobs.close()
    async with (
        make_pool(url, name="benchmark", max_size=2) as pool,
        GroupCommitter(url) as committer,
        PostgresEventLog(pool, committer) as log,
    ):
        context = CommandContext(by=BY, at=_now())
        batch = (await start_batch(log, StartBatch(id=uuid4(), owner=BY), context)).batch
        for start in range(0, files, AT_ONCE):
            await log.append(_arrived(batch, range(start, min(start + AT_ONCE, files))))
        await log.append(Append((StreamAppend(batch.id, None, batch.seal(at=_now(), by=BY)),)))
        await _until_done(url, batch.id)


def _arrived(batch: Batch, numbers: range) -> Append:
    """Build the append that registers files and records them as received."""
    at = _now()
    arrived = FileReceived(at=at, by=BY, size=len(TEXT), blob=BLOB)
    writes = []
    for number in numbers:
        file = FileDeclaration(path=f"{number:06}.txt", size=len(TEXT))
        upload, registered = batch.register_upload(file, b"", at=at, by=BY)
        writes.append(StreamAppend(upload, 0, (*registered, arrived)))
    return Append(tuple(writes))


async def _until_done(url: str, batch: UUID) -> None:
    deadline = time.monotonic() + COMPLETION_TIMEOUT
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while time.monotonic() < deadline:
            cursor = await connection.execute(_DONE, (batch,))
            if await cursor.fetchone() == (True,):
                return
            await asyncio.sleep(POLL_INTERVAL)
    raise TimeoutError(f"after {COMPLETION_TIMEOUT:.0f} s the batch was not processed")


def _now() -> datetime:
    return datetime.now(UTC)
