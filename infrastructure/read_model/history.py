"""The port `History`: the recorded events of whatever belongs to the asker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
from sqlalchemy import (
    CTE,
    ColumnElement,
    CompoundSelect,
    Row,
    Select,
    and_,
    exists,
    func,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from application.append import RecordedEvent
from application.errors import NotFound
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.read_model.engine import read_connection, snapshot_connection
from infrastructure.read_model.tables import NAME, batches, stored_events, tracking, uploads

# Which streams a history is about, said in two ways: as a list, and as a test.

Streams: TypeAlias = CompoundSelect[tuple[UUID]]


class HistoryScope(msgspec.Struct, frozen=True):
    """`streams(after)` lists those with events beyond a position; `includes` tests one of any."""

    streams: Callable[[int], Streams]
    includes: Callable[[ColumnElement[Any]], ColumnElement[bool]]


def of_batch(id: UUID) -> HistoryScope:
    """Return the scope of a batch: its stream and those of its uploads."""

    def streams(after: int) -> Streams:
        return union_all(
            select(batches.c.id).where(batches.c.id == id, batches.c.position > after),
            select(uploads.c.id).where(uploads.c.batch == id, uploads.c.position > after),
        )

    def includes(stream: ColumnElement[Any]) -> ColumnElement[bool]:
        its = exists().where(uploads.c.id == stream, uploads.c.batch == id)
        return or_(stream == id, its)

    return HistoryScope(streams, includes)


def of_owner(owner: str) -> HistoryScope:
    """Return the scope of an owner: the streams of all batches."""

    def streams(after: int) -> Streams:
        its = uploads.join(batches, batches.c.id == uploads.c.batch)
        return union_all(
            select(batches.c.id).where(batches.c.owner == owner, batches.c.position > after),
            select(uploads.c.id)
            .select_from(its)
            .where(batches.c.owner == owner, uploads.c.position > after),
        )

    def includes(stream: ColumnElement[Any]) -> ColumnElement[bool]:
        return or_(
            exists().where(uploads.c.id == stream, uploads.c.owner == owner),
            exists().where(batches.c.id == stream, batches.c.owner == owner),
        )

    return HistoryScope(streams, includes)


# Picks the events of many streams out of the log, in total order, a page at a time.
#
# A few streams are gathered by the primary key and sorted. Of many streams the next page lies
# close ahead in the log, so that is looked through instead; unless it does not lie close.

MAX_GATHERED_STREAMS = 2_000  # streams
SCAN_WINDOW_EVENTS = 20_000  # positions looked through at a time
SPARSE_WINDOW_EVENTS = (
    SCAN_WINDOW_EVENTS // 100
)  # events in a window below which gathering is quicker than looking on

log = stored_events.c
EVENT = (log.originator_id, log.originator_version, log.notification_id, log.topic, log.state)


async def decode_rows(rows: Sequence[Row[*tuple[Any, ...]]], codec: Codec) -> list[RecordedEvent]:
    """Return the events of rows with the columns EVENT. Raises UnreadableEvent, Unavailable."""
    await codec.load_keys(row.state for row in rows)
    return [_recorded(row, codec) for row in rows]


def _recorded(row: Row[*tuple[Any, ...]], codec: Codec) -> RecordedEvent:
    event, cause = codec.decode(row.topic, row.state)
    return RecordedEvent(
        row.originator_id, row.originator_version, row.notification_id, event, cause
    )


class HistoryPager:
    """Reader of one page of a scope, on a connection with one snapshot.

    `reached` is the position up to which the streams of the scope are known.
    """

    def __init__(
        self, session: AsyncConnection, scope: HistoryScope, reached: int, codec: Codec
    ) -> None:
        self._session = session
        self._scope = scope
        self._reached = reached
        self._codec = codec

    async def page(self, after: int, limit: int) -> list[RecordedEvent]:
        """Return the first `limit` events beyond position `after`."""
        if await self._has_few_streams(after):
            return await self._gather(after, limit)
        return await self._look_through(after, limit)

    async def page_before(self, before: int, limit: int) -> list[RecordedEvent]:
        """Return the last `limit` events before position `before`, oldest first."""
        before = min(before, self._reached + 1)
        if await self._has_few_streams(0):
            return (await self._gather_back(before, limit))[::-1]
        return (await self._look_back(before, limit))[::-1]

    async def _has_few_streams(self, after: int) -> bool:
        some = self._scope.streams(after).limit(MAX_GATHERED_STREAMS + 1).subquery()
        count = await self._session.scalar(select(func.count()).select_from(some))
        return count is not None and count <= MAX_GATHERED_STREAMS

    async def _look_through(self, after: int, limit: int) -> list[RecordedEvent]:
        found: list[RecordedEvent] = []
        while len(found) < limit and after < self._reached:
            end = min(after + SCAN_WINDOW_EVENTS, self._reached)
            wanted = limit - len(found)
            ahead = await self._events(
                select(*EVENT)
                .where(
                    log.notification_id > after,
                    log.notification_id <= end,
                    self._scope.includes(log.originator_id),
                )
                .order_by(log.notification_id)
                .limit(wanted)
            )
            found += ahead
            after = end
            if len(ahead) < min(SPARSE_WINDOW_EVENTS, wanted):
                return found + await self._gather(after, limit - len(found))
        return found

    async def _look_back(self, before: int, limit: int) -> list[RecordedEvent]:
        """As `_look_through`, but towards the beginning; newest first."""
        found: list[RecordedEvent] = []
        while len(found) < limit and before > 1:
            start = max(1, before - SCAN_WINDOW_EVENTS)
            wanted = limit - len(found)
            behind = await self._events(
                select(*EVENT)
                .where(
                    log.notification_id >= start,
                    log.notification_id < before,
                    self._scope.includes(log.originator_id),
                )
                .order_by(log.notification_id.desc())
                .limit(wanted)
            )
            found += behind
            before = start
            if len(behind) < min(SPARSE_WINDOW_EVENTS, wanted):
                return found + await self._gather_back(before, limit - len(found))
        return found

    async def _gather_back(self, before: int, limit: int) -> list[RecordedEvent]:
        events = self._gathered(0, log.notification_id < before)
        return await self._events(
            select(events).order_by(events.c.notification_id.desc()).limit(limit)
        )

    async def _gather(self, after: int, limit: int) -> list[RecordedEvent]:
        ahead = and_(log.notification_id > after, log.notification_id <= self._reached)
        events = self._gathered(after, ahead)
        return await self._events(select(events).order_by(events.c.notification_id).limit(limit))

    def _gathered(self, after: int, which: ColumnElement[bool]) -> CTE:
        """Return those events of the streams, found by the primary key.

        Materialized, because the planner may otherwise scan the whole log to keep the order.
        """
        streams = self._scope.streams(after).cte("streams").prefix_with("MATERIALIZED")
        return (
            select(*EVENT)
            .join_from(streams, stored_events, log.originator_id == streams.c.id)
            .where(which)
            .cte("events")
            .prefix_with("MATERIALIZED")
        )

    async def _events(self, query: Select[Any]) -> list[RecordedEvent]:
        return await decode_rows((await self._session.execute(query)).all(), self._codec)


_POSITION = select(tracking.c.notification_id).where(tracking.c.application_name == NAME)


class PostgresHistory:
    """The port `History`. The read model determines the owner of each stream.

    Histories of several streams end at the position of the read model: beyond it, events of a
    stream that is not projected yet could be missed. Raises Unavailable and UnreadableEvent.
    """

    def __init__(self, engine: AsyncEngine, *, codec: Codec = CODEC) -> None:
        self._engine = engine
        self._codec = codec

    async def of_upload(
        self, id: UUID, *, owner: str | None, after: int = 0, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        which = log.notification_id > after
        return await self._of_stream(id, owner, which, log.originator_version.asc(), limit)

    async def of_upload_before(
        self, id: UUID, before: int, *, owner: str | None, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        which = log.notification_id < before
        found = await self._of_stream(id, owner, which, log.originator_version.desc(), limit)
        return found[::-1]

    async def of_batch(
        self, id: UUID, *, owner: str | None, after: int = 0, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        async with snapshot_connection(self._engine) as session:
            await self._require_batch(session, id, owner)
            return await self._page(session, of_batch(id), after, limit)

    async def of_batch_before(
        self, id: UUID, before: int, *, owner: str | None, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        async with snapshot_connection(self._engine) as session:
            await self._require_batch(session, id, owner)
            return await (await self._scan(session, of_batch(id))).page_before(before, limit)

    async def of_everything(
        self, *, owner: str | None, after: int = 0, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        if owner is None:
            query = (
                select(*EVENT)
                .where(log.notification_id > after)
                .order_by(log.notification_id)
                .limit(limit)
            )
            async with read_connection(self._engine) as session:
                return await decode_rows((await session.execute(query)).all(), self._codec)
        async with snapshot_connection(self._engine) as session:
            return await self._page(session, of_owner(owner), after, limit)

    async def _page(
        self, session: AsyncConnection, scope: HistoryScope, after: int, limit: int
    ) -> list[RecordedEvent]:
        return await (await self._scan(session, scope)).page(after, limit)

    async def _scan(self, session: AsyncConnection, scope: HistoryScope) -> HistoryPager:
        reached = (await session.execute(_POSITION)).scalar_one()
        return HistoryPager(session, scope, reached, self._codec)

    async def _require_batch(self, session: AsyncConnection, id: UUID, owner: str | None) -> None:
        """Raises NotFound."""
        exists = select(batches.c.owner).where(batches.c.id == id)
        found = (await session.execute(exists)).scalar_one_or_none()
        if found is None or owner not in (None, found):
            raise NotFound(f"no batch {id}")

    async def _of_stream(
        self,
        id: UUID,
        owner: str | None,
        which: ColumnElement[bool],
        order: ColumnElement[int],
        limit: int,
    ) -> list[RecordedEvent]:
        """Those events of an upload; raises NotFound where there is no such upload."""
        its = and_(log.originator_id == uploads.c.id, which)
        query = (
            select(*EVENT)
            .select_from(uploads.outerjoin(stored_events, its))
            .where(uploads.c.id == id, *([] if owner is None else [uploads.c.owner == owner]))
            .order_by(order)
            .limit(limit)
        )
        async with read_connection(self._engine) as session:
            rows = (await session.execute(query)).all()
        if not rows:
            raise NotFound(f"no upload {id}")
        found = [row for row in rows if row.notification_id is not None]
        return await decode_rows(found, self._codec)
