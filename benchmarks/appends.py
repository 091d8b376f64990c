"""Concurrent appends of one event, compared with the `save` of the eventsourcing library."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import UUID, uuid4

import uvloop
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate

from application.append import append_to_stream
from benchmarks.databases import empty_database, fresh_database
from benchmarks.measure import Ratio, measure_alternating
from domain.batch.events import BatchStarted
from infrastructure.event_store.committer import GroupCommitter

AT_ONCE = 128


def run(scale: float) -> list[Ratio]:
    with fresh_database() as url, empty_database() as environment:
        application: Application[UUID] = Application(env=environment)
        try:
            ours, theirs = measure_alternating(
                3,
                lambda: uvloop.run(append(url, int(40_000 * scale))),
                lambda: save(application, int(2_000 * scale)),
            )
        finally:
            application.close()
    return [Ratio("appends, 128 at once", "events/s", ours, "the library's save", theirs, 20)]


async def append(url: str, events: int) -> float:
    """Return the events per second through one group committer."""
    happened = BatchStarted(
        at=datetime.now(UTC), by="benchmark", owner="default", label="x" * 40, pipeline="default"
    )
    async with GroupCommitter(url) as committer:

        async def appender() -> None:
            for _ in range(events // AT_ONCE):
                await committer.append(append_to_stream(uuid4(), 0, happened))

        begun = time.perf_counter()
        await asyncio.gather(*(appender() for _ in range(AT_ONCE)))
        return events / (time.perf_counter() - begun)


def save(application: Application[UUID], events: int) -> float:
    """Return the events per second of the library, with a thread per pooled connection."""
    with ThreadPoolExecutor(8) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda _: application.save(Aggregate()), range(events)))
        return events / (time.perf_counter() - begun)
