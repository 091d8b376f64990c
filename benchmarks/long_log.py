"""Cost of appends, loads and pages with a log of 5,000,000 events and one of 50,000.

No peer is measured: the long log is compared with the short one, alternating.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple
from uuid import UUID, uuid4

import psycopg
import uvloop

from application.append import Append, StreamAppend
from benchmarks.appends import append
from benchmarks.databases import fresh_database
from benchmarks.measure import Ratio, Run, measure_in_rotation
from benchmarks.projection import EVENTS_PER_UPLOAD, upload_history
from domain.batch.events import BatchStarted
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.listener import READ_MODEL, Listener
from infrastructure.postgres.pool import make_pool
from infrastructure.read_model.engine import make_engine
from infrastructure.read_model.queries import PostgresQueries
from infrastructure.read_model.rebuild import rebuild

SHORT, LONG = 50_000, 5_000_000  # events
UPLOADS = 500  # of one batch
OWNER = "default"  # of the uploads of `upload_history`
ROUNDS = 5
FLAT = 1 / 1.3  # the budget of the design for growth
APPENDS, LOADS, PAGES = 8_192, 500, 200  # of one run

Ids = list[tuple[UUID, UUID]]
"""A batch and one of its uploads, of some batches all over the log."""


class Log(NamedTuple):
    url: str
    ids: Ids


def run(scale: float) -> list[Ratio]:
    long = int(LONG * scale)
    with fresh_database() as short_url, fresh_database() as long_url:
        logs = {
            f"{SHORT:,} events": _filled(short_url, SHORT),
            f"{long:,} events": _filled(long_url, long),
        }
        ratios = []
        for what, operation in (("append", _appending), ("load", _loading), ("list", _listing)):
            samples = measure_in_rotation(
                ROUNDS, {name: partial(operation, log) for name, log in logs.items()}
            )
            (few, short), (many, longer) = samples.items()
            for name, sample in samples.items():
                print(f"  {what:8} {name:18} {sample} a second", flush=True)
            ratios.append(Ratio(f"{what}, {many}", "/s", longer.rate, few, short.rate, FLAT))
    return ratios


def _filled(url: str, events: int) -> Log:
    begun = time.perf_counter()
    ids = uvloop.run(_fill(url, events))
    print(f"  {events:,} events made in {time.perf_counter() - begun:.0f} s", flush=True)
    return Log(url, ids)


async def _fill(url: str, events: int) -> Ids:
    """Add batches of processed uploads to the log and the read model."""
    ids: Ids = []
    async with _opened(url) as (log, _):
        for _ in range(events // (UPLOADS * EVENTS_PER_UPLOAD)):
            batch, uploads = uuid4(), [uuid4() for _ in range(UPLOADS)]
            started = BatchStarted(
                at=datetime.now(UTC), by="benchmark", owner=OWNER, label="", pipeline="default"
            )
            lives = [
                StreamAppend(upload, 0, upload_history(batch, n))
                for n, upload in enumerate(uploads)
            ]
            await log.append(Append((StreamAppend(batch, 0, (started,)), *lives)))
            ids.append((batch, random.choice(uploads)))
        await rebuild(url, log)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")  # as autovacuum would have come to it meanwhile
    return ids


def _appending(log: Log) -> Run:
    return Run(uvloop.run(append(log.url, APPENDS)))


def _loading(log: Log) -> Run:
    async def load(store: PostgresEventLog, _: PostgresQueries) -> None:
        upload = random.choice(log.ids)[1]
        store.forget(upload)
        await store.upload(upload)

    return uvloop.run(_repeated(log, LOADS, load))


def _listing(log: Log) -> Run:
    """Measure the second page of a batch's uploads and the first page of batches."""

    async def show(_: PostgresEventLog, queries: PostgresQueries) -> None:
        batch = random.choice(log.ids)[0]
        first = await queries.uploads(batch, owner=OWNER)
        await queries.uploads(batch, owner=OWNER, cursor=first.next)
        await queries.batches(owner=OWNER)

    return uvloop.run(_repeated(log, PAGES, show))


async def _repeated(
    log: Log, times: int, work: Callable[[PostgresEventLog, PostgresQueries], Awaitable[None]]
) -> Run:
    async with _opened(log.url) as (store, queries):
        await work(store, queries)
        begun = time.perf_counter()
        for _ in range(times):
            await work(store, queries)
        return Run(times / (time.perf_counter() - begun))


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[tuple[PostgresEventLog, PostgresQueries]]:
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(make_pool(url, name="benchmark", max_size=2))
        committer = await stack.enter_async_context(GroupCommitter(url))
        log = await stack.enter_async_context(PostgresEventLog(pool, committer))
        listener = await stack.enter_async_context(Listener(url))
        engine = make_engine(url)
        stack.push_async_callback(engine.dispose)
        yield log, PostgresQueries(engine, listener.wakeups(READ_MODEL))
