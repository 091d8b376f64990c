"""The stored log in memory, below the cache of aggregates of `CachedEventLog`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import datetime
from uuid import UUID

import psycopg

from application.append import Append, AppendResult, RecordedEvent
from application.errors import ApplicationError, OutcomeUnknown, Unavailable
from application.ports.event_log import Origin
from infrastructure.event_store.codec import CODEC
from infrastructure.event_store.event_log import (
    CachedEventLog,
    LogReader,
    Snapshotted,
    decode_snapshot,
    encode_snapshot,
)
from infrastructure.event_store.reader import recorded_of
from infrastructure.event_store.writer import (
    AcceptedAppend,
    VersionTracker,
    condition_streams,
    encode,
)
from tests.memory.database import (
    ID_SECRET,
    Client,
    MemoryDatabase,
    Session,
    StoredRow,
    Wire,
)


def decoded(row: StoredRow) -> RecordedEvent:
    return recorded_of(CODEC, row.stream, row.version, row.position, row.topic, row.state)


class StagedAppends:
    """Appends of one transaction, which holds the lock of the log from the first to its end."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._rows: list[StoredRow] = []
        self._answers: list[tuple[UUID, tuple[str, bytes, int, datetime]]] = []

    def add(self, appends: Sequence[Append]) -> list[AppendResult | ApplicationError]:
        """Check and number the appends; the caller holds the lock of the log."""
        database = self._database
        group = [encode(append) for append in appends]
        guarded = condition_streams(group)
        tracker = VersionTracker(
            versions={
                stream: len(database.streams.get(stream, ()))
                for encoded in group
                for stream in encoded.streams
            },
            topics={
                stream: [
                    (row.version, row.topic)
                    for row in database.streams.get(stream, ())
                    if row.version > after
                ]
                for stream, after in guarded.items()
            },
            answers={id: known[:3] for id, known in database.answers.items()},
        )
        return [self._result(tracker.check(encoded)) for encoded in group]

    def commit(self) -> None:
        self._database.answers.update(self._answers)
        self._database.commit_rows(self._rows)

    def _result(
        self, verdict: AcceptedAppend | ApplicationError
    ) -> AppendResult | ApplicationError:
        if not isinstance(verdict, AcceptedAppend):
            return verdict
        position = 0
        for row in verdict.rows:
            position = self._database.next_position()
            self._rows.append(StoredRow(row.stream, row.version, position, row.topic, row.state))
        if answer := verdict.encoded.append.idempotency:
            known = (answer.fingerprint, answer.body, position, self._database.now())
            self._answers.append((answer.command_id, known))
        return AppendResult(position, verdict.versions)


class MemoryCommitter:
    """Records appends. An error of the wire becomes Unavailable, or OutcomeUnknown if sent."""

    def __init__(
        self, database: MemoryDatabase, wire: Wire, open_session: Callable[[], Session]
    ) -> None:
        self._database = database
        self._wire = wire
        self._open_session = open_session

    async def append(self, append: Append) -> AppendResult:
        # Appends of one process are independent transactions, as those of a group are.
        session = self._open_session()
        try:
            await self._wire.request("append")
            if (delay := self._wire.loses_commit()) is not None:
                loop = asyncio.get_running_loop()
                loop.call_later(delay, self._commit_late, append, context=Context())
                raise OutcomeUnknown("the log was lost during the commit")
            await self._database.lock("log").acquire(session)
            result = self._commit(append)
        except psycopg.Error as error:
            raise Unavailable(f"the log cannot be reached: {error}") from error
        finally:
            session.terminate()
        try:
            await self._wire.response("append")
        except psycopg.Error as error:
            raise OutcomeUnknown(f"the log was lost: {error}") from error
        if isinstance(result, ApplicationError):
            raise result
        return result

    def _commit(self, append: Append) -> AppendResult | ApplicationError:
        staged = StagedAppends(self._database)
        (result,) = staged.add([append])
        staged.commit()
        return result

    def _commit_late(self, append: Append) -> None:
        """Commit for a session whose client has gone, as soon as it gets the lock of the log."""
        session, lock = Session(self._database), self._database.lock("log")
        try:
            if lock.try_acquire(session):
                self._commit(append)
            else:
                loop = asyncio.get_running_loop()
                loop.call_later(0.01, self._commit_late, append, context=Context())
        finally:
            session.terminate()


class MemoryLogReader:
    """The port `LogReader` in memory."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._database = client.database

    async def id_secret(self) -> bytes:
        return ID_SECRET

    async def origin(self, id: UUID) -> Origin | None:
        rows = await self._client.call("origin", lambda: self._database.streams.get(id))
        if not rows:
            return None
        event = decoded(rows[0]).event
        return Origin(getattr(event, "owner", ""), getattr(event, "batch", None))

    async def versions(self, ids: Sequence[UUID]) -> dict[UUID, int]:
        streams = self._database.streams
        return await self._client.call(
            "versions", lambda: {id: len(streams.get(id, ())) for id in ids}
        )

    async def stream(
        self, id: UUID, after: int, upto_position: int | None, limit: int
    ) -> Sequence[RecordedEvent]:
        def found() -> list[StoredRow]:
            rows = self._database.streams.get(id, [])[after:]
            if upto_position is not None:
                rows = [row for row in rows if row.position <= upto_position]
            return rows[:limit]

        return [decoded(row) for row in await self._client.call("stream", found)]

    async def read(
        self, after: int, limit: int, topics: Sequence[str] | None
    ) -> Sequence[RecordedEvent]:
        rows = await self._client.call(
            "read", lambda: rows_beyond(self._database, after, limit, topics)
        )
        return [decoded(row) for row in rows]

    async def head(self) -> int:
        return await self._client.call("head", lambda: head_of(self._database))

    async def position_at(self, moment: datetime) -> int:
        rows = await self._client.call("position_at", lambda: list(self._database.rows))
        upto = [row.position for row in rows if decoded(row).event.at <= moment]
        return max(upto, default=0)

    async def last_snapshot(self, id: UUID) -> Snapshotted | None:
        kept = await self._client.call("snapshot", lambda: self._database.snapshots.get(id))
        return None if kept is None else decode_snapshot(kept[2])

    async def save_snapshot(self, aggregate: Snapshotted) -> None:
        topic, state = encode_snapshot(aggregate)
        snapshots = self._database.snapshots

        def save() -> None:
            kept = snapshots.get(aggregate.id)
            if kept is None or kept[0] < aggregate.version:
                snapshots[aggregate.id] = (aggregate.version, topic, state)

        await self._client.call("save_snapshot", save)


def rows_beyond(
    database: MemoryDatabase, after: int, limit: int, topics: Sequence[str] | None
) -> list[StoredRow]:
    """Return the rows beyond a position, in order."""
    low, high = 0, len(database.rows)
    while low < high:
        middle = (low + high) // 2
        if database.rows[middle].position > after:
            high = middle
        else:
            low = middle + 1
    if topics is None:
        return database.rows[low : low + limit]
    wanted = frozenset(topics)
    return [row for row in database.rows[low:] if row.topic in wanted][:limit]


def head_of(database: MemoryDatabase) -> int:
    return database.rows[-1].position if database.rows else 0


def memory_event_log(
    database: MemoryDatabase,
    wire: Wire | None = None,
    open_session: Callable[[], Session] | None = None,
) -> CachedEventLog:
    """Return the event log of one process; open it before use."""
    wire = wire or Wire()
    client = Client(database, wire)
    committer = MemoryCommitter(database, wire, open_session or (lambda: Session(database)))

    @asynccontextmanager
    async def open_reader() -> AsyncIterator[LogReader]:
        yield MemoryLogReader(client)

    return CachedEventLog(open_reader, committer.append)


async def whole_log(database: MemoryDatabase) -> list[RecordedEvent]:
    await asyncio.sleep(0)
    return [decoded(row) for row in database.rows]
