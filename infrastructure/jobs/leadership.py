"""Who leads: one session holds the advisory lock, and does all its work in that session."""

from __future__ import annotations

import asyncio

from infrastructure.postgres.pool import Connection

LEADER = 0x75707472_0003  # "uptr", 3: the advisory lock of the active orchestrator
NAME = "orchestrator"  # its row in notification_tracking

STANDBY = 0.5  # seconds between two tries to take the lead
SILENCE = 10.0  # seconds after which the server ends the session of a leader that does nothing

# An orchestrator that is stopped, or cut off, while it holds locks must not stop the others: one
# that lives does something every second. Rows are found by index, also in a table that grew since
# it was last analyzed.
_MANNERS = """
SELECT set_config('enable_seqscan', 'off', false),
  set_config('idle_session_timeout', %(silence)s, false),
  set_config('idle_in_transaction_session_timeout', %(silence)s, false),
  set_config('lock_timeout', '10s', false),
  set_config('client_connection_check_interval', '1s', false)"""

_TRACKED = "SELECT notification_id FROM notification_tracking WHERE application_name = %s"

_BEGIN = "INSERT INTO notification_tracking VALUES (%s, 0) ON CONFLICT DO NOTHING"

_TRACK = "UPDATE notification_tracking SET notification_id = %s WHERE application_name = %s"


class Deposed(Exception):
    """Somebody else has moved the orchestrator's place in the log: this one no longer leads."""


async def take_the_lead(connection: Connection) -> int:
    """Waits until this session leads; returns the position in the log to go on from.

    The lock ends with the session, and the session's transaction ends before its locks: what
    the last leader had begun is committed or gone when the next one begins. Asking again
    and again, instead of waiting in the server, holds no snapshot that VACUUM would respect.
    """
    await connection.execute(_MANNERS, {"silence": f"{SILENCE * 1000:.0f}ms"})
    while not await _try_lock(connection):  # noqa: ASYNC110
        await asyncio.sleep(STANDBY)
    await connection.execute(_BEGIN, (NAME,))
    cursor = await connection.execute(_TRACKED, (NAME,))
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def require_position(connection: Connection, position: int) -> None:
    """Locks the orchestrator's place in the log for this transaction. Raises Deposed."""
    cursor = await connection.execute(_TRACKED + " FOR UPDATE", (NAME,), prepare=True)
    row = await cursor.fetchone()
    if row is None or row[0] != position:
        raise Deposed(f"the orchestrator is at {row}, not at {position}")


async def track(connection: Connection, position: int) -> None:
    await connection.execute(_TRACK, (position, NAME), prepare=True)


async def _try_lock(connection: Connection) -> bool:
    cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", (LEADER,))
    row = await cursor.fetchone()
    return bool(row and row[0])
