"""Folding of a stream's events into its aggregate."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeAlias, cast
from uuid import UUID

import msgspec
import structlog
from msgspec.structs import replace

from application.append import Append, AppendResult, RecordedEvent, StreamAppend
from application.errors import NotFound
from application.ports.event_log import Origin
from domain.access.events import ERASURE_EVENTS, KEY_EVENTS, SIGN_IN_EVENTS
from domain.access.records import RecordedErasure, RecordedKey, RecordedSignIn
from domain.batch.aggregate import Batch
from domain.batch.events import BATCH_EVENTS
from domain.catalogue import DomainEvent
from domain.errors import CommandRejected
from domain.event import UnknownEvent
from domain.upload.aggregate import Upload
from domain.upload.events import UPLOAD_EVENTS
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WEBHOOK_EVENTS
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.committer import GroupCommitter
from infrastructure.event_store.reader import (
    last_position_at,
    read_head,
    read_id_secret,
    read_log,
    read_origin,
    read_stream,
)
from infrastructure.event_store.writer import stream_versions
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool

Snapshotted: TypeAlias = Upload | Batch | Webhook
Aggregate: TypeAlias = Snapshotted | RecordedKey | RecordedSignIn | RecordedErasure

_EVENTS_OF: tuple[tuple[Any, tuple[type[DomainEvent], ...]], ...] = (
    (Upload, UPLOAD_EVENTS),
    (Batch, BATCH_EVENTS),
    (Webhook, WEBHOOK_EVENTS),
    (RecordedKey, KEY_EVENTS),
    (RecordedSignIn, SIGN_IN_EVENTS),
    (RecordedErasure, ERASURE_EVENTS),
)
_AGGREGATE_OF: Mapping[type[DomainEvent], Any] = MappingProxyType(
    {event: aggregate for aggregate, events in _EVENTS_OF for event in events}
)


class MixedStream(Exception):
    """A stream holds events of more than one kind of aggregate."""


def apply_event(
    id: UUID, aggregate: Aggregate | None, event: DomainEvent | UnknownEvent
) -> Aggregate | None:
    """Return the aggregate after the event; None stands for a stream that has not begun.

    An event of an unknown type changes the version of the aggregate and nothing else. A stream
    that begins with one has no aggregate in this version of Uptrail. Raises MixedStream, and
    InvalidState for a history that lacks its beginning.
    """
    if isinstance(event, UnknownEvent):
        return None if aggregate is None else replace(aggregate, version=aggregate.version + 1)
    kind = _AGGREGATE_OF[type(event)]
    if aggregate is None:
        begun: Aggregate = kind.begin(id, event)
        return begun
    if type(aggregate) is not kind:
        raise MixedStream(f"{type(event).__name__} in the stream of {aggregate!r}")
    evolved: Aggregate = aggregate.evolve(event)  # type: ignore[arg-type]
    return evolved


# Aggregates that this process knows, the least recently used forgotten first.


class CachedAggregate(msgspec.Struct):
    """Aggregate, when it was known to be current, and the version of its snapshot.

    `at` is in seconds of the event loop's clock. An aggregate is not `is_complete` if events of
    unknown types were skipped: a snapshot of it would hide them from the version that knows them.
    """

    aggregate: Aggregate
    at: float
    snapshot: int
    is_complete: bool = True


class AggregateCache:
    """LRU cache of aggregates."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._known: OrderedDict[UUID, CachedAggregate] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, id: UUID) -> CachedAggregate | None:
        known = self._known.get(id)
        if known is not None:
            self._known.move_to_end(id)
        return known

    def put(self, known: CachedAggregate) -> None:
        """Keep the newer one of this aggregate and the cached one."""
        id = known.aggregate.id
        before = self._known.get(id)
        if before is not None and before.aggregate.version > known.aggregate.version:
            return
        self._known[id] = known
        self._known.move_to_end(id)
        if len(self._known) > self._size:
            self._known.popitem(last=False)

    def forget(self, id: UUID) -> None:
        self._known.pop(id, None)

    def apply(self, write: StreamAppend, version: int, at: float) -> None:
        """Apply events recorded by this process, which brought the stream to `version`."""
        known = self._known.get(write.stream)
        before = version - len(write.events)
        if known is None and before > 0:
            return
        if known is not None and known.aggregate.version != before:
            self.forget(write.stream)
            return
        try:
            aggregate = _after(write, known.aggregate if known else None)
        except (CommandRejected, MixedStream):
            # The events are recorded, so the write succeeds; the next load of the stream raises
            # the error.
            self.forget(write.stream)
            return
        if aggregate is not None:
            self.put(
                CachedAggregate(
                    aggregate,
                    at,
                    known.snapshot if known else 0,
                    known.is_complete if known else True,
                )
            )


def _after(write: StreamAppend, aggregate: Aggregate | None) -> Aggregate | None:
    for event in write.events:
        aggregate = apply_event(write.stream, aggregate, cast("DomainEvent", event))
    return aggregate


# Snapshots: an aggregate as of a version, so that a long stream is not read from its start.

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder[Snapshotted](Snapshotted).decode

# A snapshot of aggregates with other fields than today's is passed over: its topic differs.
_SHAPE = sha256(_encode(msgspec.json.schema(Snapshotted))).hexdigest()[:8]
SNAPSHOT_TOPICS = frozenset(f"{kind}.snapshot.{_SHAPE}" for kind in ("batch", "upload", "webhook"))


def encode_snapshot(aggregate: Snapshotted) -> tuple[str, bytes]:
    """Return the topic of a snapshot and its bytes."""
    return f"{aggregate.__struct_config__.tag}.snapshot.{_SHAPE}", _encode(aggregate)


def decode_snapshot(state: bytes) -> Snapshotted:
    """Decode a snapshot. Raises msgspec.MsgspecError for bytes of another shape."""
    aggregate: Snapshotted = _decode(state)
    return aggregate


async def save_snapshot(connection: Connection, aggregate: Snapshotted) -> None:
    """Store the aggregate as of its version. Idempotent."""
    topic, state = encode_snapshot(aggregate)
    await connection.execute(
        "INSERT INTO stored_snapshots (originator_id, originator_version, topic, state)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (aggregate.id, aggregate.version, topic, state),
    )


async def last_snapshot(connection: Connection, id: UUID) -> Snapshotted | None:
    """Return the newest snapshot of the stream in today's shape, if there is one."""
    cursor = await connection.execute(
        "SELECT state FROM stored_snapshots WHERE originator_id = %s AND topic = ANY(%s)"
        " ORDER BY originator_version DESC LIMIT 1",
        (id, list(SNAPSHOT_TOPICS)),
    )
    row = await cursor.fetchone()
    return None if row is None else decode_snapshot(row[0])


# The port `EventLog`, on PostgreSQL.

MAX_CACHED_AGGREGATES = 20_000  # aggregates
CACHE_FRESH_SECONDS = 1.0  # seconds for which an aggregate is taken as current without looking
EVENTS_PER_PAGE = 10_000  # events read at once while an aggregate is loaded
SNAPSHOT_INTERVAL_EVENTS = 100  # events of a stream
MAX_CONCURRENT_SNAPSHOTS = 4

_log = structlog.get_logger(__name__)


class LogReader(Protocol):
    """Queries of the stored log, in one session; see the port `EventLog`."""

    async def id_secret(self) -> bytes: ...

    async def origin(self, id: UUID) -> Origin | None: ...

    async def versions(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        """Return the current version of each stream; 0 where it does not exist."""

    async def stream(
        self, id: UUID, after: int, upto_position: int | None, limit: int
    ) -> Sequence[RecordedEvent]: ...

    async def read(
        self, after: int, limit: int, topics: Sequence[str] | None
    ) -> Sequence[RecordedEvent]: ...

    async def head(self) -> int: ...

    async def position_at(self, moment: datetime) -> int: ...

    async def last_snapshot(self, id: UUID) -> Snapshotted | None:
        """Return the newest snapshot of the stream in today's shape, if there is one."""

    async def save_snapshot(self, aggregate: Snapshotted) -> None:
        """Keep the aggregate as of its version. Idempotent."""


class CachedEventLog:
    """The port `EventLog` over a stored log, with a cache of aggregates.

    `open_reader` raises Unavailable; `record` is the `append` of the port. Use as an async context
    manager, so that snapshots under way are finished.
    """

    def __init__(
        self,
        open_reader: Callable[[], AbstractAsyncContextManager[LogReader]],
        record: Callable[[Append], Awaitable[AppendResult]],
    ) -> None:
        self._reader = open_reader
        self._record = record
        self._remembered = AggregateCache(MAX_CACHED_AGGREGATES)
        self._snapshots: set[asyncio.Task[None]] = set()
        self._id_secret: bytes | None = None

    async def __aenter__(self) -> Self:
        """Read the id secret. Raises Unavailable."""
        async with self._reader() as reader:
            self._id_secret = await reader.id_secret()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for snapshots that are being stored."""
        while self._snapshots:
            await asyncio.wait(self._snapshots)

    @property
    def id_secret(self) -> bytes:
        assert self._id_secret is not None, "the log is not open"
        return self._id_secret

    async def append(self, append: Append) -> AppendResult:
        """Raises OutcomeUnknown besides the errors of the port; see GroupCommitter.append."""
        try:
            appended = await self._record(append)
        except BaseException:
            # Whatever it was, what is remembered may be wrong: the next load finds out.
            self.forget(*(write.stream for write in append.writes))
            self.forget(*(condition.stream for condition in append.conditions))
            raise
        now = asyncio.get_running_loop().time()
        for write in append.writes:
            self._remembered.apply(write, appended.versions[write.stream], now)
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
        async with self._reader() as reader:
            return await reader.origin(id)

    def forget(self, *ids: UUID) -> None:
        for id in ids:
            self._remembered.forget(id)

    async def versions(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        async with self._reader() as reader:
            found = await reader.versions(ids)
        return {id: version for id, version in found.items() if version}

    async def stream(
        self,
        id: UUID,
        *,
        after: int = 0,
        upto_position: int | None = None,
        limit: int = EVENTS_PER_PAGE,
    ) -> Sequence[RecordedEvent]:
        async with self._reader() as reader:
            return await reader.stream(id, after, upto_position, limit)

    async def read(
        self, after: int, *, limit: int, topics: Sequence[str] | None = None
    ) -> Sequence[RecordedEvent]:
        async with self._reader() as reader:
            return await reader.read(after, limit, topics)

    async def head(self) -> int:
        async with self._reader() as reader:
            return await reader.head()

    async def position_at(self, moment: datetime) -> int:
        """Return an exact position unless events lie far out of order; see `last_position_at`."""
        async with self._reader() as reader:
            return await reader.position_at(moment)

    async def _load(self, id: UUID) -> Aggregate | None:
        now = asyncio.get_running_loop().time()
        known = self._remembered.get(id)
        if known is None or now - known.at > CACHE_FRESH_SECONDS:
            async with self._reader() as reader:
                known = await self._catch_up(reader, id, known, now)
            if known is None:
                return None
            self._remembered.put(known)
        self._snapshot_if_due(known)
        return known.aggregate

    async def _catch_up(
        self, reader: LogReader, id: UUID, known: CachedAggregate | None, now: float
    ) -> CachedAggregate | None:
        """Fold the events since the cached aggregate or the last snapshot."""
        aggregate = known.aggregate if known else await reader.last_snapshot(id)
        after = aggregate.version if aggregate else 0
        snapshot = known.snapshot if known else after
        is_complete = known.is_complete if known else True
        while True:
            page = await reader.stream(id, after, None, EVENTS_PER_PAGE)
            for recorded in page:
                if isinstance(recorded.event, UnknownEvent):
                    if aggregate is None:  # an aggregate of a later version
                        return None
                    is_complete = False
                aggregate = apply_event(id, aggregate, recorded.event)
                after = recorded.version
            if len(page) < EVENTS_PER_PAGE:
                return CachedAggregate(aggregate, now, snapshot, is_complete) if aggregate else None

    def _snapshot_if_due(self, known: CachedAggregate) -> None:
        """Store the snapshot in the background, unless enough are being stored."""
        aggregate = known.aggregate
        if aggregate.version - known.snapshot < SNAPSHOT_INTERVAL_EVENTS or not known.is_complete:
            return
        room = len(self._snapshots) < MAX_CONCURRENT_SNAPSHOTS
        if room and isinstance(aggregate, Snapshotted):
            known.snapshot = aggregate.version
            task = asyncio.create_task(self._snapshot(aggregate), name="snapshot")
            self._snapshots.add(task)
            task.add_done_callback(self._snapshots.discard)

    async def _snapshot(self, aggregate: Snapshotted) -> None:
        try:
            async with self._reader() as reader:
                await reader.save_snapshot(aggregate)
        except Exception:  # the events are all there: only the next load takes longer
            _log.exception("snapshot_failed", stream=str(aggregate.id))


class PostgresEventLog(CachedEventLog):
    """Reads through the pool, writes through the committer; both are opened by the caller."""

    def __init__(self, pool: Pool, committer: GroupCommitter, *, codec: Codec = CODEC) -> None:
        @asynccontextmanager
        async def open_reader() -> AsyncIterator[LogReader]:
            async with pool.connection(message="the log cannot be read") as connection:
                yield PostgresLogReader(connection, codec)

        super().__init__(open_reader, committer.append)


class PostgresLogReader:
    """The port `LogReader` on one connection. Raises psycopg.Error, UnreadableEvent."""

    def __init__(self, connection: Connection, codec: Codec) -> None:
        self._connection = connection
        self._codec = codec

    async def id_secret(self) -> bytes:
        return await read_id_secret(self._connection)

    async def origin(self, id: UUID) -> Origin | None:
        return await read_origin(self._connection, id)

    async def versions(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        return await stream_versions(self._connection, ids)

    async def stream(
        self, id: UUID, after: int, upto_position: int | None, limit: int
    ) -> Sequence[RecordedEvent]:
        return await read_stream(self._connection, id, after, upto_position, limit, self._codec)

    async def read(
        self, after: int, limit: int, topics: Sequence[str] | None
    ) -> Sequence[RecordedEvent]:
        return await read_log(self._connection, after, limit, topics, self._codec)

    async def head(self) -> int:
        return await read_head(self._connection)

    async def position_at(self, moment: datetime) -> int:
        return await last_position_at(self._connection, moment, self._codec)

    async def last_snapshot(self, id: UUID) -> Snapshotted | None:
        return await last_snapshot(self._connection, id)

    async def save_snapshot(self, aggregate: Snapshotted) -> None:
        await save_snapshot(self._connection, aggregate)
