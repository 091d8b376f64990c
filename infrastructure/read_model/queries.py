"""The port `Queries`, on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, RowMapping, Select, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from application.activity import show_activity, utc_now
from application.errors import NotFound
from application.ports.event_log import Wakeups
from application.ports.read_model import Page
from application.reporting import Report
from application.views import AttemptView, BatchView, UploadView
from infrastructure.read_model.cursors import AfterBatch, AfterUpload, from_cursor, to_cursor
from infrastructure.read_model.engine import answering, one_moment
from infrastructure.read_model.report import open_report
from infrastructure.read_model.tables import NAME, attempts, batches, projections, tracking, uploads

_POSITION = select(tracking.c.notification_id).where(tracking.c.application_name == NAME)
_EPOCH = select(projections.c.epoch).where(projections.c.name == NAME)
_ATTEMPT = AttemptView.__struct_fields__
_SETTLE = 0.005  # seconds between two looks at a position that was announced and is not there

View = TypeVar("View", BatchView, UploadView, AttemptView)


class PostgresQueries:
    """Asks through the engine; `wakeups` are those of the channel `uptrail_read_model`.

    What a batch is doing is derived as of `now`, when it is asked for. Every question raises
    Unavailable when the database cannot be reached.
    """

    def __init__(
        self, engine: AsyncEngine, wakeups: Wakeups, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._now = now

    async def position(self) -> int:
        async with answering(self._engine) as session:
            return await _position(session)

    async def epoch(self) -> str:
        """A name that every rebuild of the read model changes."""
        async with answering(self._engine) as session:
            return str((await session.execute(_EPOCH)).scalar_one())

    async def wait_for(self, position: int, *, timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while await self.position() < position:
                await self._wakeups.wait(position - 1)
                await asyncio.sleep(_SETTLE)

    async def batch(self, id: UUID, *, owner: str | None) -> BatchView:
        query = select(batches).where(batches.c.id == id, *_owned_by(batches.c.owner, owner))
        return show_activity(_only(BatchView, await self._rows(query), "batch", id), self._now())

    async def batches(
        self,
        *,
        owner: str | None,
        state: str | None = None,
        label: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> Page[BatchView]:
        query = select(batches).where(
            *_owned_by(batches.c.owner, owner),
            *_equal(batches.c.state, state),
            *_equal(batches.c.label, label),
        )
        if cursor is not None:
            after = from_cursor(cursor, AfterBatch)
            query = query.where(
                tuple_(batches.c.started_at, batches.c.id) < (after.started_at, after.id)
            )
        query = query.order_by(batches.c.started_at.desc(), batches.c.id.desc()).limit(limit + 1)
        async with one_moment(self._engine) as session:
            found = _views(BatchView, (await session.execute(query)).mappings().all())
            items, more = found[:limit], len(found) > limit
            next = to_cursor(AfterBatch(items[-1].started_at, items[-1].id)) if more else None
            now = self._now()
            shown = [show_activity(batch, now) for batch in items]
            return Page(shown, next, await _position(session))

    async def upload(self, id: UUID, *, owner: str | None) -> UploadView:
        query = select(uploads).where(uploads.c.id == id, *_owned_by(uploads.c.owner, owner))
        return _only(UploadView, await self._rows(query), "upload", id)

    async def uploads(
        self,
        batch: UUID,
        *,
        owner: str | None,
        state: str | None = None,
        cursor: str | None = None,
        limit: int = 100,
    ) -> Page[UploadView]:
        exists = select(batches.c.id).where(
            batches.c.id == batch, *_owned_by(batches.c.owner, owner)
        )
        query = select(uploads).where(uploads.c.batch == batch, *_equal(uploads.c.state, state))
        if cursor is not None:
            after = from_cursor(cursor, AfterUpload)
            query = query.where(tuple_(uploads.c.path, uploads.c.id) > (after.path, after.id))
        query = query.order_by(uploads.c.path, uploads.c.id).limit(limit + 1)
        async with one_moment(self._engine) as session:
            if (await session.execute(exists)).first() is None:
                raise NotFound(f"no batch {batch}")
            found = _views(UploadView, (await session.execute(query)).mappings().all())
            items, more = found[:limit], len(found) > limit
            next = to_cursor(AfterUpload(items[-1].path, items[-1].id)) if more else None
            return Page(items, next, await _position(session))

    async def attempts(self, upload: UUID, *, owner: str | None) -> list[AttemptView]:
        query = (
            select(uploads.c.id, attempts)
            .join_from(uploads, attempts, attempts.c.upload == uploads.c.id, isouter=True)
            .where(uploads.c.id == upload, *_owned_by(uploads.c.owner, owner))
            .order_by(attempts.c.number)
        )
        rows = await self._rows(query)
        if not rows:
            raise NotFound(f"no upload {upload}")
        found = [{name: row[name] for name in _ATTEMPT} for row in rows]
        return [AttemptView(**row) for row in found if row["number"] is not None]

    def report(
        self, batch: UUID, *, owner: str | None, only_failed: bool = False
    ) -> AbstractAsyncContextManager[Report]:
        return open_report(
            self._engine, batch, owner=owner, only_failed=only_failed, now=self._now()
        )

    async def _rows(self, query: Select[Any]) -> Sequence[RowMapping]:
        async with answering(self._engine) as session:
            rows: Sequence[RowMapping] = (await session.execute(query)).mappings().all()
            return rows


async def _position(session: AsyncConnection) -> int:
    return int((await session.execute(_POSITION)).scalar_one())


def _owned_by(column: ColumnElement[Any], owner: str | None) -> list[ColumnElement[bool]]:
    return _equal(column, owner)


def _equal(column: ColumnElement[Any], value: str | None) -> list[ColumnElement[bool]]:
    """A condition where there is a value; no text in PostgreSQL holds a NUL."""
    if value is None:
        return []
    return [column == value.replace("\0", "\ufffd")]


def _views(view: type[View], rows: Sequence[RowMapping]) -> list[View]:
    return [view(**row) for row in rows]


def _only(view: type[View], rows: Sequence[RowMapping], kind: str, id: UUID) -> View:
    if not rows:
        raise NotFound(f"no {kind} {id}")
    return view(**rows[0])
