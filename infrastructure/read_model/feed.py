"""The port `FeedSource` on PostgreSQL: one round trip and one snapshot per query.

Uses psycopg rather than SQLAlchemy: this runs ten times a second while clients are connected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import msgspec
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Loader
from psycopg.sql import SQL, Composed, Identifier

from application.ports.read_model import ChangePage, FeedFilter
from application.views import DERIVED, AttemptView, BatchView, UploadView, show_activity, utc_now
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool

MAX_ATTEMPTS_PER_UPLOAD = 10  # on average over a page; a fuller one is cut

View = TypeVar("View", BatchView, UploadView, AttemptView)
Rows: TypeAlias = Sequence[Sequence[Any]]


def _columns(view: type[msgspec.Struct], table: str) -> Composed:
    names = (Identifier(table, name) for name in view.__struct_fields__ if name not in DERIVED)
    return SQL(", ").join(names)


_ONE_MOMENT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
# Taken before the first snapshot is, so that a rebuild swaps its tables in before this
# moment or after it, and never in between (PostgreSQL manual, section 13.3.1).
_HOLD = (
    "LOCK TABLE read_model.batches, read_model.uploads, read_model.attempts IN ACCESS SHARE MODE"
)
# A page is a short walk along an index, also right after 100,000 rows came that the planner has
# not heard of yet; without this it would collect them all and sort them, for every page.
_CHOICES = """
    SELECT set_config('TimeZone', 'UTC', true), set_config('enable_bitmapscan', 'off', true)"""

_PLACE = """
    SELECT coalesce((SELECT notification_id FROM notification_tracking
                     WHERE application_name = 'read_model'), 0),
           coalesce((SELECT epoch::text FROM projections WHERE name = 'read_model'), '')"""

_BATCHES = SQL("""
    SELECT {columns} FROM read_model.batches AS b
    WHERE b.position > %(after)s
      AND (%(batches)s::uuid[] IS NULL OR b.id = ANY(%(batches)s::uuid[]))
      AND (%(owner)s::text IS NULL OR b.owner = %(owner)s)
    ORDER BY b.position LIMIT %(limit)s""").format(columns=_columns(BatchView, "b"))

# Batch by batch, so that each is one short walk along the index (batch, position).
_FOLLOWED = SQL("""
    SELECT u.* FROM unnest(%(uploads_of)s::uuid[]) AS followed (id)
    CROSS JOIN LATERAL (
        SELECT * FROM read_model.uploads AS mine
        WHERE mine.batch = followed.id AND mine.position > %(after)s
          AND (%(owner)s::text IS NULL OR mine.owner = %(owner)s)
        ORDER BY mine.position LIMIT %(limit)s) AS u
    ORDER BY u.position LIMIT %(limit)s""")

_UPLOADS = SQL("SELECT {columns} FROM ({followed}) AS u ORDER BY u.position").format(
    columns=_columns(UploadView, "u"), followed=_FOLLOWED
)

# An attempt changes with its upload, whose row then has a position at least as high: all
# attempts beyond a position are found at uploads beyond it.
_ATTEMPTS = SQL("""
    SELECT {columns} FROM unnest(%(tried)s::uuid[]) WITH ORDINALITY AS tried (upload, place)
    CROSS JOIN LATERAL (
        SELECT * FROM read_model.attempts AS every
        WHERE every.upload = tried.upload AND every.position > %(since)s
        OFFSET 0) AS a
    ORDER BY tried.place, a.number""").format(columns=_columns(AttemptView, "a"))

_REACH = """
    SELECT coalesce((SELECT notification_id FROM notification_tracking
                     WHERE application_name = 'read_model'), 0),
           coalesce((SELECT max(notification_id) FROM stored_events), 0)"""

_KNOWN = """
    SELECT id FROM read_model.batches
    WHERE id = ANY(%s) AND (%s::text IS NULL OR owner = %s)"""


class _Jsonb(Loader):
    """Most rows have nothing in most of these columns."""

    def load(self, data: Buffer) -> Any:
        text = bytes(data)
        return {} if text == b"{}" else msgspec.json.decode(text)


class _Asked(msgspec.Struct, frozen=True):
    selection: FeedFilter
    since: int
    after: int
    limit: int

    def values(self) -> dict[str, Any]:
        batches = self.selection.batches
        return {
            "since": self.since,
            "after": self.after,
            "batches": None if batches is None else list(batches),
            "uploads_of": list(self.selection.uploads_of),
            "owner": self.selection.owner,
            "limit": self.limit + 1,  # one more shows whether another page follows
        }


class PostgresFeed:
    """The port of the feed on the read model; activities are derived as of `now`."""

    def __init__(self, pool: Pool, now: Callable[[], datetime] = utc_now) -> None:
        self._pool = pool
        self._now = now

    async def changes(
        self, selection: FeedFilter, *, since: int, after: int, limit: int
    ) -> ChangePage:
        """See the port. Raises Unavailable."""
        return await self._changes(_Asked(selection, since, after, limit))

    async def reach(self) -> tuple[int, int]:
        """See the port. Raises Unavailable."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute(_REACH)).fetchone()
        assert row is not None  # the query always answers
        return int(row[0]), int(row[1])

    async def known(self, ids: frozenset[UUID], *, owner: str | None) -> frozenset[UUID]:
        """See the port. Raises Unavailable."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_KNOWN, (list(ids), owner, owner))
            return frozenset(row[0] for row in await cursor.fetchall())

    async def _changes(self, asked: _Asked) -> ChangePage:
        values, now = asked.values(), self._now()
        async with self._pool.connection() as connection, connection.transaction():
            async with connection.pipeline():
                for statement in (_ONE_MOMENT, _HOLD, _CHOICES):
                    await connection.execute(statement)
                place = await connection.execute(_PLACE)
                batches = await _ask(connection, _BATCHES, values)
                uploads = None
                if asked.selection.uploads_of:
                    uploads = await _ask(connection, _UPLOADS, values)
            found = [] if uploads is None else _views(UploadView, await uploads.fetchall())
            # Most of what moves is being sent, and was never tried yet.
            values["tried"] = [row.id for row in found if row.attempt]
            attempts = None
            if values["tried"]:
                attempts = await _ask(connection, _ATTEMPTS, values)
            return _page(
                asked,
                await place.fetchall(),
                [show_activity(row, now) for row in _views(BatchView, await batches.fetchall())],
                found,
                [] if attempts is None else _views(AttemptView, await attempts.fetchall()),
            )


async def _ask(
    connection: Connection, query: Composed, values: dict[str, Any]
) -> psycopg.AsyncCursor[tuple[Any, ...]]:
    cursor = connection.cursor()
    cursor.adapters.register_loader("jsonb", _Jsonb)
    return await cursor.execute(query, values)


def _page(
    asked: _Asked,
    place: Rows,
    batches: Sequence[BatchView],
    uploads: Sequence[UploadView],
    attempts: Sequence[AttemptView],
) -> ChangePage:
    """Return the page up to the first position at which a list was truncated.

    Attempts are in the order of their uploads.
    """
    [[head, epoch]] = place
    limit, most_attempts = asked.limit, asked.limit * MAX_ATTEMPTS_PER_UPLOAD
    ends = [rows[limit - 1].position for rows in (batches, uploads) if len(rows) > limit]
    reached_at = {row.id: row.position for row in uploads} if attempts else {}
    told_at = [reached_at[row.upload] for row in attempts]
    if len(attempts) > most_attempts:
        ends.append(_last_whole_upload(told_at, most_attempts))
    to = min([head, *ends])
    return ChangePage(
        epoch=epoch,
        since=asked.since,
        after=asked.after,
        to=to,
        head=head,
        more=bool(ends),
        batches=[row for row in batches if row.position <= to],
        uploads=[row for row in uploads if row.position <= to],
        attempts=[row for row, at in zip(attempts, told_at, strict=True) if at <= to],
    )


def _last_whole_upload(positions: Sequence[int], most: int) -> int:
    """Return the highest upload position up to which attempts fit, or the first position."""
    beyond = positions[most]
    return max((at for at in positions[:most] if at < beyond), default=beyond)


def _views(view: type[View], rows: Iterable[Sequence[Any]]) -> list[View]:
    names = [name for name in view.__struct_fields__ if name not in DERIVED]
    return [view(**dict(zip(names, row, strict=True))) for row in rows]
