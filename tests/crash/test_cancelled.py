"""Work cancelled at any await leaves no connection, lock, queue entry or file behind."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from application.commands import StartBatch
from application.handlers.batches import start_batch
from application.transfers.quotas import Quota, Quotas
from application.transfers.transfers import Actor, AppendRequest, TransferLimits, Transfers
from domain.file import FileDeclaration
from domain.ids import upload_id_for
from infrastructure.read_model.projector import catch_up
from infrastructure.read_model.rebuild import rebuild, verify
from infrastructure.settings import Settings
from infrastructure.webhooks.outbox import PostgresOutbox
from interfaces.bootstrap.container import Container, open_container
from tests.crash.awaits import awaits
from tests.crash.kill_at_await import Interrupted
from tests.infrastructure.jobs.harness import context
from tests.support import eventually

BATCH, OWNER = uuid4(), "acme"
FILES = (FileDeclaration(path="a.txt", size=30), FileDeclaration(path="b.txt", size=0))
UPLOAD = upload_id_for(BATCH, "a.txt", b"")
ACTOR = Actor("key:alice")

# Methods that hold a resource while they wait. Slots and blobs are asked under their own names.
_LEFT = """
SELECT (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()),
  (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
   AND state LIKE 'idle in transaction%%')"""

Work = Callable[[Container], Awaitable[Any]]


async def _asks(parts: Container) -> None:
    services = parts.services
    await services.queries.batches(owner=OWNER)
    await services.queries.uploads(BATCH, owner=OWNER)
    await services.history.of_batch(BATCH, owner=OWNER)
    await services.workers.workers(owner=OWNER)
    await services.usage.of_owner(OWNER)
    await services.log.versions([UPLOAD])


async def _reports(parts: Container) -> None:
    async with parts.services.queries.report(BATCH, owner=OWNER) as report:
        assert [row.path async for row in report.files] == ["a.txt", "b.txt"]


async def _commands(parts: Container) -> None:
    await start_batch(parts.log, StartBatch(id=uuid4(), owner=OWNER, files=FILES), context())


async def _sends(parts: Container) -> None:
    id = uuid4()
    await start_batch(parts.log, StartBatch(id=id, owner=OWNER, files=FILES), context())
    incoming = AppendRequest(upload=upload_id_for(id, "a.txt", parts.log.id_secret), offset=0)
    await transfers(parts).receive(incoming, _pieces(), ACTOR)


async def _stores(parts: Container) -> None:
    name = f"artifacts/{uuid4()}"
    await parts.blobs.put(name, b"bytes")
    assert b"".join([chunk async for chunk in parts.blobs.read(name)]) == b"bytes"


async def _packs(parts: Container) -> None:
    name = f"uploads/{uuid4()}"
    packed = (await parts.blobs.put_many({name: b"bytes"}))[name]
    assert b"".join([chunk async for chunk in parts.blobs.read(packed)]) == b"bytes"


async def _verifies(parts: Container) -> None:
    await verify(parts.database.url, parts.log)


async def _rebuilds(parts: Container) -> None:
    await rebuild(parts.database.url, parts.log)


async def _delivers(parts: Container) -> None:
    await PostgresOutbox(parts.pool, 5.0).claim(5, at=parts.services.now())


async def _runs_errands(parts: Container) -> None:
    tickets = await parts.services.remote_steps.open(UPLOAD, 1, download_within=60)
    await parts.services.remote_steps.close(tickets.id)


WORKS: dict[str, Work] = {
    work.__name__.strip("_"): work
    for work in (
        _asks,
        _reports,
        _commands,
        _sends,
        _stores,
        _packs,
        _verifies,
        _rebuilds,
        _delivers,
        _runs_errands,
    )
}


LONG = ("verifies", "rebuilds")  # of many awaits, between which tables are made and dropped


def transfers(parts: Container) -> Transfers:
    limits = TransferLimits(max_file_size=100, min_free_bytes=0, progress_interval=9)
    services = parts.services
    clock = asyncio.get_running_loop().time
    nothing = Quota(bytes=0, files=0)
    quotas = Quotas(
        services.usage, clock, owner=nothing, batch=nothing, transfers=3, slots=services.slots
    )
    return Transfers(
        parts.log,
        parts.blobs,
        services.remote_preemption,
        quotas=quotas,
        limits=limits,
        now=services.now,
        clock=clock,
    )


async def _pieces() -> AsyncIterator[bytes]:
    for _ in range(3):
        yield b"x"
        await asyncio.sleep(0)


# SQLAlchemy leaves the client's side of a server's cursor to the collector; the transaction ends.
@pytest.mark.filterwarnings("ignore:.*AsyncServerCursor:ResourceWarning")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", WORKS)
async def test_work_that_is_cancelled_at_any_await_leaves_nothing_behind(
    database_url: str, tmp_path: Path, name: str
) -> None:
    settings = Settings(data_dir=tmp_path, database_url=database_url)
    async with open_container(settings) as parts:
        await start_batch(parts.log, StartBatch(id=BATCH, owner=OWNER, files=FILES), context())
        await catch_up(database_url, parts.log)
        await WORKS[name](parts)
        open_before = _descriptors()
        for late in (False, True):
            for at in awaits(1000, 13 if name in LONG else 1):
                if await Interrupted(WORKS[name](parts), at, late=late).ended():
                    break

        async def nothing_is_held() -> bool:
            return _lent(parts) == 0 and await _held(parts) == OF_THE_COMMITTER

        gc.collect()
        await eventually(nothing_is_held)
        await eventually(lambda: _descriptors() <= open_before + SPARE)
        await WORKS[name](parts)


OF_THE_COMMITTER = (1, 0)  # the lock of its session
SPARE = 12  # connections that pools may have opened, and keep


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _lent(parts: Container) -> int:
    """Return the number of borrowed connections of the pool."""
    stats = parts.pool.get_stats()
    return stats["pool_size"] - stats["pool_available"]


async def _held(parts: Container) -> tuple[int, int] | None:
    """Locks, and open transactions."""
    async with parts.pool.connection() as connection:
        return await (await connection.execute(_LEFT, ())).fetchone()
