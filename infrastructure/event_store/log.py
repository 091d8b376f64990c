"""The port `EventLog`, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Self
from uuid import UUID

import structlog

from application.append import Append, AppendResult, RecordedEvent
from application.errors import NotFound
from application.ports.event_log import Origin
from domain.batch.aggregate import Batch
from domain.event import UnknownEvent
from domain.upload.aggregate import Upload
from domain.webhook.aggregate import Webhook
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.folding import Aggregate, Snapshotted, apply_event
from infrastructure.event_store.reading import (
    last_position_at,
    read_head,
    read_id_secret,
    read_log,
    read_origin,
    read_stream,
)
from infrastructure.event_store.remembered import Known, Remembered
from infrastructure.event_store.snapshots import last_snapshot, save_snapshot
from infrastructure.event_store.writing import stream_versions
from infrastructure.postgres.pool import Connection, Pool, borrowed

REMEMBERED = 20_000  # aggregates
FRESH = 1.0  # seconds for which an aggregate is taken as current without looking
PAGE = 10_000  # events read at once while an aggregate is loaded
SNAPSHOT_EVERY = 100  # events of a stream
SNAPSHOTS_AT_ONCE = 4

_log = structlog.get_logger(__name__)


class PostgresEventLog:
    """Reads through the pool, writes through the committer; both are opened by the caller.

    Use as an async context manager, so that snapshots under way are finished.
    """

    def __init__(self, pool: Pool, committer: GroupCommitter, *, codec: Codec = CODEC) -> None:
        self._pool = pool
        self._committer = committer
        self._codec = codec
        self._remembered = Remembered(REMEMBERED)
        self._snapshots: set[asyncio.Task[None]] = set()
        self._id_secret: bytes | None = None

    async def __aenter__(self) -> Self:
        """Raises Unavailable."""
        async with self._connection() as connection:
            self._id_secret = await read_id_secret(connection)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Waits for the snapshots under way."""
        while self._snapshots:
            await asyncio.wait(self._snapshots)

    @property
    def id_secret(self) -> bytes:
        assert self._id_secret is not None, "the log is not open"
        return self._id_secret

    async def append(self, append: Append) -> AppendResult:
        """Besides the errors of the port, raises OutcomeUnknown; see GroupCommitter.append."""
        try:
            appended = await self._committer.append(append)
        except BaseException:
            # Whatever it was, what is remembered may be wrong: the next load finds out.
            self.forget(*(write.stream for write in append.writes))
            self.forget(*(condition.stream for condition in append.conditions))
            raise
        now = asyncio.get_running_loop().time()
        for write in append.writes:
            self._remembered.recorded(write, appended.versions[write.stream], now)
        return appended

    async def upload(self, id: UUID) -> Upload:
        aggregate = await self._load(id)
        if isinstance(aggregate, Upload):
            return aggregate
        raise NotFound(f"no upload {id}")

    async def batch(self, id: UUID) -> Batch:
        aggregate = await self._load(id)
        if isinstance(aggregate, Batch):
            return aggregate
        raise NotFound(f"no batch {id}")

    async def webhook(self, id: UUID) -> Webhook:
        aggregate = await self._load(id)
        if isinstance(aggregate, Webhook):
            return aggregate
        raise NotFound(f"no webhook {id}")

    def remembered(self, id: UUID) -> Snapshotted | None:
        known = self._remembered.get(id)
        aggregate = None if known is None else known.aggregate
        return aggregate if isinstance(aggregate, Snapshotted) else None

    async def origin(self, id: UUID) -> Origin | None:
        async with self._connection() as connection:
            return await read_origin(connection, id)

    def forget(self, *ids: UUID) -> None:
        for id in ids:
            self._remembered.forget(id)

    async def versions(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        async with self._connection() as connection:
            found = await stream_versions(connection, ids)
        return {id: version for id, version in found.items() if version}

    async def stream(
        self, id: UUID, *, after: int = 0, upto_position: int | None = None, limit: int = PAGE
    ) -> Sequence[RecordedEvent]:
        async with self._connection() as connection:
            return await read_stream(connection, id, after, upto_position, limit, self._codec)

    async def read(
        self, after: int, *, limit: int, topics: Sequence[str] | None = None
    ) -> Sequence[RecordedEvent]:
        async with self._connection() as connection:
            return await read_log(connection, after, limit, topics, self._codec)

    async def head(self) -> int:
        async with self._connection() as connection:
            return await read_head(connection)

    async def position_at(self, moment: datetime) -> int:
        """Exact but for events that lie far out of order; see `last_position_at`."""
        async with self._connection() as connection:
            return await last_position_at(connection, moment, self._codec)

    async def _load(self, id: UUID) -> Aggregate | None:
        now = asyncio.get_running_loop().time()
        known = self._remembered.get(id)
        if known is None or now - known.at > FRESH:
            async with self._connection() as connection:
                known = await self._catch_up(connection, id, known, now)
            if known is None:
                return None
            self._remembered.put(known)
        self._snapshot_if_due(known)
        return known.aggregate

    async def _catch_up(
        self, connection: Connection, id: UUID, known: Known | None, now: float
    ) -> Known | None:
        """What is remembered, or the last snapshot, and the events since."""
        aggregate = known.aggregate if known else await last_snapshot(connection, id)
        after = aggregate.version if aggregate else 0
        snapshot = known.snapshot if known else after
        is_complete = known.is_complete if known else True
        while True:
            page = await read_stream(connection, id, after, None, PAGE, self._codec)
            for recorded in page:
                if isinstance(recorded.event, UnknownEvent):
                    if aggregate is None:  # an aggregate of a later version
                        return None
                    is_complete = False
                aggregate = apply_event(id, aggregate, recorded.event)
                after = recorded.version
            if len(page) < PAGE:
                return Known(aggregate, now, snapshot, is_complete) if aggregate else None

    def _snapshot_if_due(self, known: Known) -> None:
        """Writes the snapshot beside the caller's way, unless enough are being written."""
        aggregate = known.aggregate
        due = known.is_complete and aggregate.version - known.snapshot >= SNAPSHOT_EVERY
        room = len(self._snapshots) < SNAPSHOTS_AT_ONCE
        if due and room and isinstance(aggregate, Snapshotted):
            known.snapshot = aggregate.version
            task = asyncio.create_task(self._snapshot(aggregate), name="snapshot")
            self._snapshots.add(task)
            task.add_done_callback(self._snapshots.discard)

    async def _snapshot(self, aggregate: Snapshotted) -> None:
        try:
            async with self._connection() as connection:
                await save_snapshot(connection, aggregate)
        except Exception:  # the events are all there: only the next load takes longer
            _log.exception("snapshot_failed", stream=str(aggregate.id))

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """Raises Unavailable when the server cannot be reached."""
        async with borrowed(self._pool, "the log cannot be read") as connection:
            yield connection
