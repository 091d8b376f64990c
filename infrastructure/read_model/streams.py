"""Checks the log itself: the versions of a stream are 1, 2, 3 and so on, its positions rise."""

from __future__ import annotations

from uuid import UUID

import msgspec

from infrastructure.postgres.pool import Connection

_BREAKS = """
SELECT stream, version, position, version_before, position_before
FROM (SELECT originator_id AS stream, originator_version AS version, notification_id AS position,
             lag(originator_version, 1, 0::bigint) OVER life AS version_before,
             lag(notification_id, 1, 0::bigint) OVER life AS position_before
      FROM stored_events WHERE notification_id <= %s
      WINDOW life AS (PARTITION BY originator_id ORDER BY originator_version)) AS events
WHERE version <> version_before + 1 OR position <= position_before
ORDER BY position LIMIT %s"""


class Break(msgspec.Struct, frozen=True):
    """An event that does not follow the one before it in its stream (0: there is none)."""

    stream: UUID
    version: int
    position: int
    version_before: int
    position_before: int


async def broken_streams(connection: Connection, upto: int, most: int) -> list[Break]:
    """The first breaks up to a position, at most so many."""
    cursor = await connection.execute(_BREAKS, (upto, most))
    return [Break(*row) for row in await cursor.fetchall()]
