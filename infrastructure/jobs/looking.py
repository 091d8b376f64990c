"""What a round asks of the orchestrator's rows: all of it in one exchange with the server."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from psycopg import AsyncCursor
from psycopg.rows import DictRow

from application.orchestrator.following import Changes
from infrastructure.jobs import ending, retrying, rows, selection
from infrastructure.jobs.leadership import save_position
from infrastructure.postgres.pool import Connection, Cursor
from infrastructure.settings import Settings


class Look(NamedTuple):
    """The answers, each for the function that can read it."""

    called_off: Cursor
    pending: Cursor
    ready: Cursor
    to_settle: AsyncCursor[DictRow]
    workers: Cursor


async def look(
    connection: Connection, changes: Changes, settings: Settings, *, through: int, at: datetime
) -> Look:
    """Saves what the events up to position `through` have changed, and asks what follows."""
    async with connection.pipeline():
        await rows.save_batches(connection, changes.batches.values())
        await rows.save_members(connection, changes.members.values())
        await retrying.begin(connection, changes.again)
        await save_position(connection, through)
        return Look(
            called_off=await ending.ask_called_off(connection),
            pending=await retrying.ask_pending(connection),
            ready=await selection.ask_ready(connection, settings),
            to_settle=await selection.ask_to_settle(
                connection, settings.batch_progress_interval, at
            ),
            workers=await selection.ask_workers(connection),
        )
