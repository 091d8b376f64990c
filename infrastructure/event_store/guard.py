"""Refuses a database in which events could be recorded out of order."""

from __future__ import annotations

from infrastructure.postgres.pool import Connection


class UnsafeWriter(Exception):
    """The library's `enable_db_functions` writer is installed.

    It records without taking any lock, so that a reader can pass a gap and lose events.
    """


async def refuse_database_functions(connection: Connection) -> None:
    """Raises UnsafeWriter if a function es_insert_events_* exists."""
    cursor = await connection.execute(
        "SELECT oid::regprocedure::text FROM pg_proc WHERE proname LIKE 'es\\_insert\\_events\\_%'"
    )
    if row := await cursor.fetchone():
        raise UnsafeWriter(
            f"the database holds the function {row[0]}, with which the eventsourcing library "
            "records events out of order (enable_db_functions). Make sure that nobody uses it, "
            f"then: DROP FUNCTION {row[0]}. Tools that only read leave it out with CREATE_TABLE=no."
        )
