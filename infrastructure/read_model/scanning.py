"""Picks the events of many streams out of the log, in total order, a page at a time.

A few streams are gathered by the primary key and sorted. Of many streams the next page lies
close ahead in the log, so that is looked through instead; unless it does not lie close.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from application.envelope import Recorded
from infrastructure.event_store.codec import Codec
from infrastructure.read_model.scopes import Scope
from infrastructure.read_model.tables import stored_events

FEW = 2_000  # streams
WINDOW = 20_000  # positions looked through at a time
SPARSE = WINDOW // 100  # events in a window below which gathering is quicker than looking on

log = stored_events.c
EVENT = (log.originator_id, log.originator_version, log.notification_id, log.topic, log.state)


def recorded(row: Row[*tuple[Any, ...]], codec: Codec) -> Recorded:
    """The event of a row of the columns EVENT. Raises UnreadableEvent."""
    event, cause = codec.decode(row.topic, row.state)
    return Recorded(row.originator_id, row.originator_version, row.notification_id, event, cause)


class Scan:
    """One page of a scope's events, on a connection that sees one moment of the database.

    `reached` is the position up to which the scope knows its streams.
    """

    def __init__(self, session: AsyncConnection, scope: Scope, reached: int, codec: Codec) -> None:
        self._session = session
        self._scope = scope
        self._reached = reached
        self._codec = codec

    async def page(self, after: int, limit: int) -> list[Recorded]:
        """The first `limit` events beyond position `after`."""
        if await self._has_few_streams(after):
            return await self._gather(after, limit)
        return await self._look_through(after, limit)

    async def _has_few_streams(self, after: int) -> bool:
        some = self._scope.streams(after).limit(FEW + 1).subquery()
        count = await self._session.scalar(select(func.count()).select_from(some))
        return count is not None and count <= FEW

    async def _look_through(self, after: int, limit: int) -> list[Recorded]:
        found: list[Recorded] = []
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

    async def _gather(self, after: int, limit: int) -> list[Recorded]:
        streams = self._scope.streams(after).cte("streams").prefix_with("MATERIALIZED")
        # Materialized, or the planner may walk the whole log for the sake of the order.
        events = (
            select(*EVENT)
            .join_from(streams, stored_events, log.originator_id == streams.c.id)
            .where(log.notification_id > after, log.notification_id <= self._reached)
            .cte("events")
            .prefix_with("MATERIALIZED")
        )
        return await self._events(select(events).order_by(events.c.notification_id).limit(limit))

    async def _events(self, query: Select[Any]) -> list[Recorded]:
        return [recorded(row, self._codec) for row in await self._session.execute(query)]
