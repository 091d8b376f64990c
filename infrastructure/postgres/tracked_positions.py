"""Positions up to which consumers of the log have read it: rows of `notification_tracking`.

The table is that of the eventsourcing library. A consumer locks its position and saves the next one
in the transaction that stores what it derived, so that no event is applied twice or left out.
"""

from __future__ import annotations

from typing import Final

import msgspec

from infrastructure.postgres.connection import Connection

_CREATE = "INSERT INTO notification_tracking VALUES (%s, 0) ON CONFLICT DO NOTHING"
_LOAD = "SELECT notification_id FROM notification_tracking WHERE application_name = %s"
_LOCK = _LOAD + " FOR UPDATE"
_SAVE = "UPDATE notification_tracking SET notification_id = %s WHERE application_name = %s"
_DELETE = "DELETE FROM notification_tracking WHERE application_name = %s"


class TrackedPosition(msgspec.Struct, frozen=True):
    """The position of one consumer. Every method raises psycopg.Error."""

    name: str

    async def create(self, connection: Connection) -> None:
        """Begin at position 0, unless a position is tracked already."""
        await connection.execute(_CREATE, (self.name,))

    async def load(self, connection: Connection) -> int:
        """Return the position. Raises LookupError."""
        return self._checked(await (await connection.execute(_LOAD, (self.name,))).fetchone())

    async def lock(self, connection: Connection) -> int:
        """Return the position, which stays the same until the transaction ends.

        Raises LookupError.
        """
        cursor = await connection.execute(_LOCK, (self.name,), prepare=True)
        return self._checked(await cursor.fetchone())

    async def save(self, connection: Connection, position: int) -> None:
        await connection.execute(_SAVE, (position, self.name), prepare=True)

    async def delete(self, connection: Connection) -> None:
        await connection.execute(_DELETE, (self.name,))

    def _checked(self, row: tuple[int, ...] | None) -> int:
        if row is None:
            raise LookupError(f"no position is tracked for {self.name}: is the database migrated?")
        return row[0]


ORCHESTRATOR_POSITION: Final = TrackedPosition("orchestrator")
READ_MODEL_POSITION: Final = TrackedPosition("read_model")
SWEEPER_POSITION: Final = TrackedPosition("sweeper")
WEBHOOKS_POSITION: Final = TrackedPosition("webhooks")
