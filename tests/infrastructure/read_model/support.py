"""Event log, read model and projector on one database, and batches recorded in the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg

from application.append import Append, RecordedEvent, StreamAppend
from application.views import AttemptView, BatchView, ReplayedRows, UploadView, replay
from domain.event import Event
from domain.ids import upload_id_for
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.event_log import PostgresEventLog
from infrastructure.postgres.listener import READ_MODEL, Listener
from infrastructure.read_model import projector
from infrastructure.read_model.engine import make_engine
from infrastructure.read_model.history import PostgresHistory
from infrastructure.read_model.queries import PostgresQueries
from interfaces.bootstrap.tasks import supervise
from tests.builders import attempt, queued, received, registered, started
from tests.harness import open_log


@dataclass
class ReadModel:
    url: str
    log: PostgresEventLog
    listener: Listener
    queries: PostgresQueries
    history: PostgresHistory

    async def record(self, stream: UUID, *events: Event, owner: str | None = None) -> int:
        append = Append((StreamAppend(stream, None, events, owner),))
        appended = await self.log.append(append)
        return appended.position

    async def catch_up(self) -> int:
        return await projector.catch_up(self.url, self.log)

    async def events(self) -> Sequence[RecordedEvent]:
        return await self.log.read(0, limit=1_000_000)

    async def replayed(self) -> ReplayedRows:
        return replay(await self.events())


@asynccontextmanager
async def open_read_model(url: str, codec: Codec = CODEC) -> AsyncIterator[ReadModel]:
    engine = make_engine(url)
    try:
        async with (
            open_log(url, codec) as log,
            Listener(url) as listener,
        ):
            queries = PostgresQueries(engine, listener.wakeups(READ_MODEL))
            yield ReadModel(url, log, listener, queries, PostgresHistory(engine))
    finally:
        await engine.dispose()


@asynccontextmanager
async def projecting(model: ReadModel) -> AsyncIterator[asyncio.Task[None]]:
    """Run a projector; yield its task."""

    async def work() -> None:
        await projector.run(model.url, model.log, model.listener.wakeups())

    task = asyncio.create_task(supervise("projector", work, essential=False))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def record_batch(model: ReadModel, *paths: str, owner: str = "acme", **more: Any) -> UUID:
    """Record a batch with uploads that are being processed."""
    batch = uuid4()
    await model.record(batch, started(owner=owner, **more))
    for path in paths:
        first = registered(batch=batch, path=path, owner=owner)
        await model.record(upload_id_for(batch, path, b""), first, received(), queued(), attempt())
    return batch


def rows_in(url: str, schema: str = "read_model") -> ReplayedRows:
    """Every row as it is stored."""
    with psycopg.connect(url, options="-c timezone=UTC") as connection:

        def table(name: str) -> Iterable[dict[str, Any]]:
            with connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
                cursor.execute(f"SELECT * FROM {schema}.{name}".encode())
                return cursor.fetchall()

        rows = ReplayedRows()
        rows.batches = {row["id"]: BatchView(**row) for row in table("batches")}
        rows.uploads = {row["id"]: UploadView(**row) for row in table("uploads")}
        rows.attempts = {
            (row["upload"], row["number"]): AttemptView(**row) for row in table("attempts")
        }
        return rows
