"""Picks the events of many streams out of the log, in total order, a page at a time.

A few streams are gathered by the primary key and sorted. Of many streams the next page lies
close ahead in the log, so that is looked through instead; unless it does not lie close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, Row, Select, and_, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from application.append import RecordedEvent
from infrastructure.event_store.codec import Codec
from infrastructure.read_model.scopes import Scope
from infrastructure.read_model.tables import stored_events

FEW = 2_000  # streams
WINDOW = 20_000  # positions looked through at a time
SPARSE = WINDOW // 100  # events in a window below which gathering is quicker than looking on

log = stored_events.c
EVENT = (log.originator_id, log.originator_version, log.notification_id, log.topic, log.state)


async def all_recorded(rows: Sequence[Row[*tuple[Any, ...]]], codec: Codec) -> list[RecordedEvent]:
    """The events of rows of the columns EVENT. Raises UnreadableEvent, Unavailable."""
    await codec.load_keys(row.state for row in rows)
    return [_recorded(row, codec) for row in rows]


def _recorded(row: Row[*tuple[Any, ...]], codec: Codec) -> RecordedEvent:
    event, cause = codec.decode(row.topic, row.state)
    return RecordedEvent(
        row.originator_id, row.originator_version, row.notification_id, event, cause
    )


class Scan:
    """One page of a scope's events, on a connection that sees one moment of the database.

    `reached` is the position up to which the scope knows its streams.
    """

    def __init__(self, session: AsyncConnection, scope: Scope, reached: int, codec: Codec) -> None:
        self._session = session
        self._scope = scope
        self._reached = reached
        self._codec = codec

    async def page(self, after: int, limit: int) -> list[RecordedEvent]:
        """The first `limit` events beyond position `after`."""
        if await self._has_few_streams(after):
            return await self._gather(after, limit)
        return await self._look_through(after, limit)

    async def page_before(self, before: int, limit: int) -> list[RecordedEvent]:
        """The last `limit` events before position `before`, oldest first."""
        before = min(before, self._reached + 1)
        if await self._has_few_streams(0):
            return (await self._gather_back(before, limit))[::-1]
        return (await self._look_back(before, limit))[::-1]

    async def _has_few_streams(self, after: int) -> bool:
        some = self._scope.streams(after).limit(FEW + 1).subquery()
        count = await self._session.scalar(select(func.count()).select_from(some))
        return count is not None and count <= FEW

    async def _look_through(self, after: int, limit: int) -> list[RecordedEvent]:
        found: list[RecordedEvent] = []
        while len(found) < limit and after < self._reached:
            end = min(after + WINDOW, self._reached)
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
            if len(ahead) < min(SPARSE, wanted):
                return found + await self._gather(after, limit - len(found))
        return found

    async def _look_back(self, before: int, limit: int) -> list[RecordedEvent]:
        """As `_look_through`, but towards the beginning; newest first."""
        found: list[RecordedEvent] = []
        while len(found) < limit and before > 1:
            start = max(1, before - WINDOW)
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
            if len(behind) < min(SPARSE, wanted):
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
        """Those events of the streams that have some beyond a position.

        Materialized, or the planner may walk the whole log for the sake of the order.
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
        return await all_recorded((await self._session.execute(query)).all(), self._codec)
