"""The completion report, read through a cursor of the server within one snapshot."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from application.activity import show_activity
from application.errors import NotFound
from application.reporting import FAILURES, MOST_REASONS, Reason, Report, ReportRow
from application.views import BatchView
from infrastructure.read_model.engine import one_moment
from infrastructure.read_model.tables import NAME, batches, tracking, uploads

AT_ONCE = 500  # rows in memory

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

_POSITION = select(tracking.c.notification_id).where(tracking.c.application_name == NAME)

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
    """See `application.reporting.Reports`."""
    mine = [] if owner is None else [batches.c.owner == owner]
    async with one_moment(engine) as session:
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
                reasons=[Reason(**row) for row in reasons],
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
        .limit(MOST_REASONS)
    )


async def _files(
    session: AsyncConnection, id: UUID, only_failed: bool
) -> AsyncGenerator[ReportRow, None]:
    query = select(*_FILES).where(uploads.c.batch == id)
    if only_failed:
        query = query.where(uploads.c.state.in_(FAILURES))
    query = query.order_by(uploads.c.path, uploads.c.id).execution_options(yield_per=AT_ONCE)
    async with session.stream(query) as result:
        try:
            async for row in result.mappings():
                yield ReportRow(**row)
        finally:  # SQLAlchemy leaves the cursor open where the reader gives up
            await result.close()
