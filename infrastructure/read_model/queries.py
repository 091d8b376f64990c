"""The port `Queries`, on PostgreSQL."""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, RowMapping, Select, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from application.errors import NotFound
from application.ports.event_log import Wakeups
from application.ports.limits import StorageUsage
from application.ports.read_model import BadCursor, IdleUpload, Page, UploadStatus
from application.views import (
    FAILURES,
    MAX_FAILURE_GROUPS,
    AttemptView,
    BatchView,
    FailureGroup,
    Report,
    ReportRow,
    UploadView,
    show_activity,
    utc_now,
)
from domain.upload.state import GONE
from infrastructure.postgres.pool import Pool
from infrastructure.read_model.engine import read_connection, snapshot_connection
from infrastructure.read_model.tables import NAME, attempts, batches, projections, tracking, uploads

# Opaque cursors: the place in an order after which the next page begins.


class AfterBatch(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    """Batches come newest first."""

    started_at: datetime
    id: UUID


class AfterUpload(msgspec.Struct, frozen=True, array_like=True, tag="u"):
    """The uploads of a batch come in the order of their paths."""

    path: str
    id: UUID


Place = TypeVar("Place", AfterBatch, AfterUpload)


def to_cursor(place: AfterBatch | AfterUpload) -> str:
    return urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def from_cursor(cursor: str, kind: type[Place]) -> Place:
    """Decode a cursor. Raises BadCursor unless `to_cursor` made it for this kind."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        place = msgspec.json.decode(urlsafe_b64decode(padded), type=kind)
    except ValueError as error:  # of base64, of msgspec, or not ASCII
        raise BadCursor("the cursor was not given out by this query") from error
    if to_cursor(place) != cursor or "\0" in getattr(place, "path", ""):
        raise BadCursor("the cursor was not given out by this query")
    return place


# The completion report, read through a cursor of the server within one snapshot.

REPORT_ROWS_PER_FETCH = 500  # rows in memory

_FILES = (
    uploads.c.id,
    uploads.c.path,
    uploads.c.state,
    uploads.c.size,
    uploads.c.media_type,
    uploads.c.attempt.label("attempts"),
    uploads.c.error_step.label("step"),
    uploads.c.error,
    uploads.c.registered_at,
    uploads.c.received_at,
    uploads.c.ended_at,
)


# Messages differ in the file they name and in numbers: without these, like goes with like.
_MESSAGE = func.coalesce(uploads.c.error, "")
_ALIKE = func.regexp_replace(
    func.replace(_MESSAGE, uploads.c.path, "{path}"), r"\d+", "#", "g"
).label("reason")
_COUNT = func.count().label("uploads")


@asynccontextmanager
async def open_report(
    engine: AsyncEngine, id: UUID, *, owner: str | None, only_failed: bool, now: datetime
) -> AsyncIterator[Report]:
    """See `application.views.Reports`."""
    mine = [] if owner is None else [batches.c.owner == owner]
    async with snapshot_connection(engine) as session:
        found = await session.execute(select(batches).where(batches.c.id == id, *mine))
        batch = found.mappings().first()
        if batch is None:
            raise NotFound(f"no batch {id}")
        position = (await session.execute(_POSITION)).scalar_one()
        reasons = (await session.execute(_reasons(id))).mappings().all()
        # Closed here, where a reader gives up in the middle: it holds a cursor.
        async with aclosing(_files(session, id, only_failed)) as files:
            yield Report(
                batch=show_activity(BatchView(**batch), now),
                position=position,
                reasons=[FailureGroup(**row) for row in reasons],
                files=files,
            )


def _reasons(id: UUID) -> Select[tuple[str, str, str, int, str, str]]:
    groups = (uploads.c.state, uploads.c.error_step, _ALIKE)
    columns = (*groups[:1], uploads.c.error_step.label("step"), _ALIKE, _COUNT)
    return (
        select(
            *columns, func.min(_MESSAGE).label("example"), func.min(uploads.c.path).label("path")
        )
        .where(uploads.c.batch == id, uploads.c.state.in_(FAILURES))
        .group_by(*groups)
        .order_by(_COUNT.desc(), *groups)
        .limit(MAX_FAILURE_GROUPS)
    )


async def _files(
    session: AsyncConnection, id: UUID, only_failed: bool
) -> AsyncGenerator[ReportRow, None]:
    query = select(*_FILES).where(uploads.c.batch == id)
    if only_failed:
        query = query.where(uploads.c.state.in_(FAILURES))
    query = query.order_by(uploads.c.path, uploads.c.id).execution_options(
        yield_per=REPORT_ROWS_PER_FETCH
    )
    async with session.stream(query) as result:
        try:
            async for row in result.mappings():
                yield ReportRow(**row)
        finally:  # SQLAlchemy leaves the cursor open where the reader gives up
            await result.close()


_POSITION = select(tracking.c.notification_id).where(tracking.c.application_name == NAME)
_EPOCH = select(projections.c.epoch).where(projections.c.name == NAME)
_ATTEMPT = AttemptView.__struct_fields__
_SETTLE = 0.005  # seconds between two looks at a position that was announced and is not there

View = TypeVar("View", BatchView, UploadView, AttemptView)


class PostgresQueries:
    """Queries of the read model; `wakeups` are those of the channel `uptrail_read_model`.

    The activity of a batch is derived as of `now`. Every query raises Unavailable if the database
    cannot be reached.
    """

    def __init__(
        self, engine: AsyncEngine, wakeups: Wakeups, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._engine = engine
        self._wakeups = wakeups
        self._now = now

    async def position(self) -> int:
        async with read_connection(self._engine) as session:
            return await _position(session)

    async def epoch(self) -> str:
        """Return the epoch, which every rebuild of the read model changes."""
        async with read_connection(self._engine) as session:
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
        async with snapshot_connection(self._engine) as session:
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
        async with snapshot_connection(self._engine) as session:
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
        async with read_connection(self._engine) as session:
            rows: Sequence[RowMapping] = (await session.execute(query)).mappings().all()
            return rows


async def _position(session: AsyncConnection) -> int:
    return int((await session.execute(_POSITION)).scalar_one())


def _owned_by(column: ColumnElement[Any], owner: str | None) -> list[ColumnElement[bool]]:
    return _equal(column, owner)


def _equal(column: ColumnElement[Any], value: str | None) -> list[ColumnElement[bool]]:
    """Return a condition if there is a value; no text in PostgreSQL holds a NUL."""
    if value is None:
        return []
    return [column == value.replace("\0", "\ufffd")]


def _views(view: type[View], rows: Sequence[RowMapping]) -> list[View]:
    return [view(**row) for row in rows]


def _only(view: type[View], rows: Sequence[RowMapping], kind: str, id: UUID) -> View:
    if not rows:
        raise NotFound(f"no {kind} {id}")
    return view(**rows[0])


# The port `Usage` on the rows of the read model.

_GONE = ", ".join(f"'{state}'" for state in sorted(GONE))

_USED = "SELECT coalesce(sum(coalesce(u.size, u.received)), 0)::bigint, count(*)"

_OF_BATCH = f"""
{_USED} FROM read_model.uploads u WHERE u.batch = %s AND u.state NOT IN ({_GONE})"""

# By way of the batches, whose index leads to those of one owner.
_OF_OWNER = f"""
{_USED} FROM read_model.batches b JOIN read_model.uploads u ON u.batch = b.id
WHERE b.owner = %s AND u.state NOT IN ({_GONE})"""


class PostgresUsage:
    """The port `Usage`. Queries count rows: callers cache the result."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def of_owner(self, owner: str) -> StorageUsage:
        return await self._used(_OF_OWNER, owner)

    async def of_batch(self, batch: UUID) -> StorageUsage:
        return await self._used(_OF_BATCH, batch)

    async def _used(self, query: Any, key: object) -> StorageUsage:
        async with self._pool.connection() as connection:
            row = await (await connection.execute(query, (key,))).fetchone()
        return StorageUsage(*row) if row else StorageUsage()


# The port `Standings` on the rows that projector and orchestrator keep.

# The orchestrator's index of incoming uploads leads to the few rows that say since when.
_IDLE = """
SELECT u.id, u.version
FROM orchestration.active_members m JOIN read_model.uploads u ON u.id = m.upload
WHERE m.kind = 'incoming' AND u.state IN ('registered', 'transferring')
AND u.updated_at < %s LIMIT %s"""

_OF = "SELECT id, state, blob FROM read_model.uploads WHERE id = ANY(%s)"


class PostgresUploadStatusLookup:
    """Upload states as of the last projected event, which may be a moment old."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def idle(self, before: datetime, limit: int) -> Sequence[IdleUpload]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_IDLE, (before, limit))
            return [IdleUpload(*row) for row in await cursor.fetchall()]

    async def of(self, uploads: Sequence[UUID]) -> dict[UUID, UploadStatus]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_OF, (list(uploads),))
            return {id: UploadStatus(state, blob) for id, state, blob in await cursor.fetchall()}
