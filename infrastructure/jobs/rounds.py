"""The port `Rounds` on PostgreSQL: the tables, the job queue and the log on one connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import MappingProxyType
from uuid import UUID

from application.append import Append, AppendResult
from application.errors import ApplicationError
from application.orchestrator import RoundConsequences
from application.ports.leadership import Leadership
from application.ports.orchestration import Round, Rounds, RoundSelection
from application.tracked_batches import (
    BatchCounts,
    TrackedBatch,
    TrackedUpload,
    TrackingChanges,
)
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.writer import append_group
from infrastructure.jobs import selection, tables
from infrastructure.jobs.queue import JobQueue
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import LEADER_TIMEOUTS, ORCHESTRATOR_LOCK, leadership
from infrastructure.postgres.tracked_positions import ORCHESTRATOR_POSITION
from infrastructure.settings import Settings

POLL_INTERVAL = 0.5  # seconds between two attempts of a standby to become the leader

# Rows are found by index, also in a table that grew since it was last analyzed.
SESSION_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        **LEADER_TIMEOUTS,
        "enable_seqscan": "off",
        "lock_timeout": "10s",
        "client_connection_check_interval": "1s",
    }
)


def orchestrator_leadership(
    url: str, settings: Settings, codec: Codec = CODEC
) -> Leadership[Rounds]:
    """Return the election of the orchestrator among all processes with this database."""
    return leadership(
        url,
        ORCHESTRATOR_LOCK,
        lambda connection: PostgresRounds(connection, settings, codec),
        name="orchestrator",
        settings=SESSION_SETTINGS,
        poll_interval=POLL_INTERVAL,
    )


class PostgresRounds:
    """Rounds on one connection. Every method raises psycopg.Error."""

    def __init__(self, connection: Connection, settings: Settings, codec: Codec = CODEC) -> None:
        self._connection = connection
        self._settings = settings
        self._codec = codec
        self._queue = JobQueue()

    async def load_position(self) -> int:
        return await tables.load_position(self._connection)

    @asynccontextmanager
    async def begin(self, position: int) -> AsyncIterator[Round]:
        async with self._connection.transaction():
            await tables.require_position(self._connection, position)
            yield _PostgresRound(self._connection, self._settings, self._queue, self._codec)


class _PostgresRound:
    def __init__(
        self, connection: Connection, settings: Settings, queue: JobQueue, codec: Codec
    ) -> None:
        self._connection = connection
        self._settings = settings
        self._queue = queue
        self._codec = codec

    async def load(
        self, uploads: Iterable[UUID], batches: Iterable[UUID]
    ) -> tuple[Mapping[UUID, TrackedUpload], Mapping[UUID, TrackedBatch]]:
        return await tables.load(self._connection, uploads, batches)

    async def save_and_select(
        self, changes: TrackingChanges, *, through: int, at: datetime
    ) -> RoundSelection:
        connection = self._connection
        async with connection.pipeline():
            await tables.save_batches(connection, changes.batches.values())
            await tables.save_uploads(connection, changes.uploads.values())
            await selection.start_batch_retries(connection, changes.batch_retries)
            await ORCHESTRATOR_POSITION.save(connection, through)
            to_cancel = await selection.select_to_cancel(connection)
            has_batch_retries = await selection.has_batch_retries(connection)
            ready = await selection.select_ready(connection, self._settings)
            to_count = await selection.select_to_count(
                connection, self._settings.batch_progress_interval, at
            )
            workers = await selection.count_workers(connection)
        return RoundSelection(
            to_cancel=await to_cancel.fetch(),
            ready=await ready.fetch(),
            to_count=await to_count.fetch(),
            has_batch_retries=await has_batch_retries.fetch(),
            workers=await workers.fetch(),
        )

    async def next_failed_uploads(self) -> Mapping[UUID, Sequence[TrackedUpload]]:
        return await selection.next_failed_uploads(self._connection)

    async def find_lost(self) -> Sequence[TrackedUpload]:
        await selection.prune_stalled_workers(self._connection, self._settings.worker_dead_after)
        return await selection.select_lost(self._connection)

    async def find_idle(self, at: datetime) -> Sequence[TrackedBatch]:
        before = at - timedelta(seconds=self._settings.batch_expiry)
        return await selection.select_idle(self._connection, before)

    async def count_uploads(self, batches: Sequence[UUID]) -> Mapping[UUID, BatchCounts]:
        return await tables.count_uploads(self._connection, batches)

    async def append(self, appends: Sequence[Append]) -> Sequence[AppendResult | ApplicationError]:
        return await append_group(self._connection, appends, self._codec)

    async def save(self, consequences: RoundConsequences) -> datetime | None:
        connection = self._connection
        jobs = await self._queue.defer(connection, consequences.jobs)
        async with connection.pipeline():
            await tables.save_uploads(connection, consequences.uploads_with_jobs(jobs))
            await tables.save_batches(connection, consequences.batches)
            await tables.mark_dirty(connection, consequences.dirty)
            due = await selection.select_next_count(
                connection, self._settings.batch_progress_interval
            )
        return await due.fetch()
