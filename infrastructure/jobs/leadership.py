"""Position of the orchestrator in the log, and the parameters of the session in which it leads."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from infrastructure.database_errors import LeadershipLost
from infrastructure.postgres.locks import LEADER_TIMEOUTS
from infrastructure.postgres.pool import Connection

NAME = "orchestrator"  # its row in notification_tracking

POLL_INTERVAL = 0.5  # seconds between two attempts of a standby to become the leader

# Rows are found by index, also in a table that grew since it was last analyzed.
SESSION_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        **LEADER_TIMEOUTS,
        "enable_seqscan": "off",
        "lock_timeout": "10s",
        "client_connection_check_interval": "1s",
    }
)

_TRACKED = "SELECT notification_id FROM notification_tracking WHERE application_name = %s"

_BEGIN = "INSERT INTO notification_tracking VALUES (%s, 0) ON CONFLICT DO NOTHING"

_TRACK = "UPDATE notification_tracking SET notification_id = %s WHERE application_name = %s"


async def load_position(connection: Connection) -> int:
    """Return the position up to which the last leader has followed the log, 0 if there was none."""
    await connection.execute(_BEGIN, (NAME,))
    cursor = await connection.execute(_TRACKED, (NAME,))
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def require_position(connection: Connection, position: int) -> None:
    """Lock the saved position for this transaction. Raises LeadershipLost if it has moved."""
    cursor = await connection.execute(_TRACKED + " FOR UPDATE", (NAME,), prepare=True)
    row = await cursor.fetchone()
    if row is None or row[0] != position:
        raise LeadershipLost(f"the orchestrator is at {row}, not at {position}")


async def save_position(connection: Connection, position: int) -> None:
    await connection.execute(_TRACK, (position, NAME), prepare=True)
