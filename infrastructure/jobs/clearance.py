"""The port `Clearance`: a job's uploads as the log has them, if the orchestrator lets them run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from application.ports.jobs import Cleared
from domain.upload.aggregate import Upload
from infrastructure.event_store.arrays import uuids
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.folding import Aggregate, apply_event
from infrastructure.event_store.snapshots import SNAPSHOT_TOPICS, decode_snapshot
from infrastructure.postgres.pool import Connection, Pool, borrowed

# The version counts: a retry that was due for an earlier failure says nothing of a later one.
_RUNNING = """
SELECT m.upload, CASE WHEN m.state = 'retry_scheduled' AND m.retry_at <= now() THEN m.version END
FROM orchestration.members m JOIN orchestration.batches b ON b.batch = m.batch
WHERE m.upload = ANY(%s) AND NOT b.paused AND b.state IN ('open', 'sealed')"""

_SNAPSHOTS = """
SELECT DISTINCT ON (originator_id) originator_id, state FROM stored_snapshots
WHERE originator_id = ANY(%s) AND topic = ANY(%s)
ORDER BY originator_id, originator_version DESC"""

# Stream by stream along the index, also while the planner takes the log for a small table.
_EVENTS = """
SELECT wanted.id, later.originator_version, later.topic, later.state
FROM unnest(%s::uuid[]) AS wanted (id)
CROSS JOIN LATERAL (
    SELECT originator_version, topic, state FROM stored_events
    WHERE originator_id = wanted.id AND originator_version > coalesce(
        (SELECT max(originator_version) FROM stored_snapshots
         WHERE originator_id = wanted.id AND topic = ANY(%s)), 0)
    ORDER BY originator_version OFFSET 0) AS later
ORDER BY wanted.id, later.originator_version"""


class PostgresClearance:
    """Reads a whole job's uploads in one exchange, whatever their number."""

    def __init__(self, pool: Pool, codec: Codec = CODEC) -> None:
        self._pool = pool
        self._codec = codec

    async def cleared(self, uploads: Sequence[UUID]) -> Sequence[Cleared]:
        async with borrowed(self._pool) as connection:
            return await self._cleared(connection, uploads)

    async def _cleared(self, connection: Connection, uploads: Sequence[UUID]) -> Sequence[Cleared]:
        ids, topics = uuids(uploads), list(SNAPSHOT_TOPICS)
        running, events, snapshots = (connection.cursor(binary=True) for _ in range(3))
        async with connection.pipeline():
            await running.execute(_RUNNING, (ids,), prepare=True)
            await events.execute(_EVENTS, (ids, topics), prepare=True)
            # After the events: a snapshot that was taken meanwhile is then newer, not missing.
            await snapshots.execute(_SNAPSHOTS, (ids, topics), prepare=True)
        due_at: dict[UUID, int | None] = dict(await running.fetchall())
        later = await events.fetchall()
        await self._codec.load_keys(state for _, _, _, state in later)
        known = _folded(self._codec, await snapshots.fetchall(), later)
        loaded = [known.get(upload) for upload in uploads if upload in due_at]
        return [
            Cleared(upload, retry_due=due_at[upload.id] == upload.version)
            for upload in loaded
            if isinstance(upload, Upload)
        ]


def _folded(
    codec: Codec,
    snapshots: Iterable[tuple[UUID, bytes]],
    events: Iterable[tuple[UUID, int, str, bytes]],
) -> dict[UUID, Aggregate]:
    """The aggregates as of now."""
    known: dict[UUID, Aggregate] = {id: decode_snapshot(state) for id, state in snapshots}
    for id, version, topic, state in events:
        before = known.get(id)
        if before is None or version > before.version:
            after = apply_event(id, before, codec.decode(topic, state)[0])
            if after is not None:
                known[id] = after
    return known
