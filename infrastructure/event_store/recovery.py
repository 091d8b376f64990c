"""After a connection was lost during COMMIT: finds out what was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from secrets import randbits

from application.append import AppendResult
from infrastructure.event_store.arrays import bigints, uuids
from infrastructure.event_store.placing import Placed
from infrastructure.event_store.waiting import Sent
from infrastructure.postgres.locks import COMMITTER_SESSIONS, LOG_LOCK
from infrastructure.postgres.pool import Connection

# Not one that waits for a synchronous standby: that would only end the waiting, and show to others
# what the standby does not have.
_END_SESSION = """
SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_stat_activity a USING (pid)
WHERE locktype = 'advisory' AND objsubid = 2 AND classid = %s AND objid = %s
AND a.wait_event IS DISTINCT FROM 'SyncRep' AND pg_locks.database
    = (SELECT oid FROM pg_database WHERE datname = current_database())"""

_AWAIT_END = "SELECT pg_advisory_xact_lock(%s, %s)"

_FOUND = """
SELECT e.notification_id, e.topic, e.state
FROM unnest(%s, %s) WITH ORDINALITY AS sent (stream, version, place)
LEFT JOIN LATERAL (
    SELECT * FROM stored_events
    WHERE originator_id = sent.stream AND originator_version = sent.version OFFSET 0) AS e ON true
ORDER BY place"""

# A commit that has something to write waits for the synchronous standby, and for all before it.
_WRITE_SOMETHING = "SELECT pg_logical_emit_message(true, 'uptrail', '')"

_ANSWERED = "SELECT position FROM command_answers WHERE command_id = %s AND fingerprint = %s"


async def begin_session(connection: Connection) -> int:
    """The number of a lock that this session holds until it ends, however it does."""
    session = randbits(31)
    await connection.execute("SELECT pg_advisory_lock(%s, %s)", (COMMITTER_SESSIONS, session))
    return session


async def look_up(connection: Connection, sent: Sequence[Sent]) -> list[AppendResult | None]:
    """What became of each append; None where it is certain that it was not, and will not be,
    recorded.

    A server may have yet to read what a lost connection brought it. So the session is ended;
    its lock proves that. Raises psycopg.Error.
    """
    async with connection.transaction():
        for session in {sending.session for sending in sent}:
            await connection.execute(_END_SESSION, (COMMITTER_SESSIONS, session))
            await connection.execute(
                "SELECT pg_advisory_xact_lock(%s, %s)", (COMMITTER_SESSIONS, session)
            )
        await LOG_LOCK.acquire_in_transaction(connection)
        outcomes = [await _outcome(connection, sending.placed) for sending in sent]
        if any(outcomes):
            # What is visible may have been recovered from the disk of a server that crashed while
            # it waited for its standby: it is acknowledged only when the standby has it, too.
            await connection.execute(_WRITE_SOMETHING)
    return outcomes


async def _outcome(connection: Connection, placed: Placed) -> AppendResult | None:
    if not placed.rows:
        return await _answered(connection, placed)
    streams = uuids(row.stream for row in placed.rows)
    versions = bigints(row.version for row in placed.rows)
    cursor = await connection.execute(_FOUND, (streams, versions))
    found = await cursor.fetchall()
    same = [
        (topic, state) == (row.topic, row.state)
        for (_, topic, state), row in zip(found, placed.rows, strict=True)
    ]
    return AppendResult(found[-1][0], placed.versions) if all(same) else None


async def _answered(connection: Connection, placed: Placed) -> AppendResult | None:
    """An append without events is known by its answer; one without either changed nothing."""
    answer = placed.encoded.append.idempotency
    if answer is None:
        return AppendResult(0, placed.versions)
    known = (answer.command_id, answer.fingerprint)
    row = await (await connection.execute(_ANSWERED, known)).fetchone()
    return None if row is None else AppendResult(row[0], placed.versions)
