"""The port `History`: the recorded events of whatever belongs to the asker."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from application.append import RecordedEvent
from application.errors import NotFound
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.read_model.engine import answering, one_moment
from infrastructure.read_model.scanning import EVENT, Scan, all_recorded, log
from infrastructure.read_model.scopes import Scope, of_batch, of_owner
from infrastructure.read_model.tables import NAME, batches, stored_events, tracking, uploads

_POSITION = select(tracking.c.notification_id).where(tracking.c.application_name == NAME)


class PostgresHistory:
    """Asks through the engine. Which streams belong to whom is what the read model says.

    Histories of more than one stream end where the read model does: beyond, an event could
    be passed over whose stream is not known yet. Raises Unavailable and UnreadableEvent.
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
        async with one_moment(self._engine) as session:
            await self._require_batch(session, id, owner)
            return await self._page(session, of_batch(id), after, limit)

    async def of_batch_before(
        self, id: UUID, before: int, *, owner: str | None, limit: int = 1000
    ) -> Sequence[RecordedEvent]:
        async with one_moment(self._engine) as session:
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
            async with answering(self._engine) as session:
                return await all_recorded((await session.execute(query)).all(), self._codec)
        async with one_moment(self._engine) as session:
            return await self._page(session, of_owner(owner), after, limit)

    async def _page(
        self, session: AsyncConnection, scope: Scope, after: int, limit: int
    ) -> list[RecordedEvent]:
        return await (await self._scan(session, scope)).page(after, limit)

    async def _scan(self, session: AsyncConnection, scope: Scope) -> Scan:
        reached = (await session.execute(_POSITION)).scalar_one()
        return Scan(session, scope, reached, self._codec)

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
        async with answering(self._engine) as session:
            rows = (await session.execute(query)).all()
        if not rows:
            raise NotFound(f"no upload {id}")
        found = [row for row in rows if row.notification_id is not None]
        return await all_recorded(found, self._codec)
