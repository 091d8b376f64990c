"""Snapshots: an aggregate as of a version, so that a long stream is not read from its start."""

from __future__ import annotations

from hashlib import sha256
from uuid import UUID

import msgspec

from infrastructure.event_store.folding import Snapshotted
from infrastructure.postgres.pool import Connection

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder[Snapshotted](Snapshotted).decode

# A snapshot of aggregates with other fields than today's is passed over: its topic differs.
_SHAPE = sha256(_encode(msgspec.json.schema(Snapshotted))).hexdigest()[:8]
SNAPSHOT_TOPICS = frozenset(f"{kind}.snapshot.{_SHAPE}" for kind in ("batch", "upload", "webhook"))


def encode_snapshot(aggregate: Snapshotted) -> tuple[str, bytes]:
    """The topic of a snapshot, and its bytes."""
    return f"{aggregate.__struct_config__.tag}.snapshot.{_SHAPE}", _encode(aggregate)


def decode_snapshot(state: bytes) -> Snapshotted:
    """Raises msgspec.MsgspecError for bytes of another shape."""
    aggregate: Snapshotted = _decode(state)
    return aggregate


async def save_snapshot(connection: Connection, aggregate: Snapshotted) -> None:
    """Keeps the aggregate as of its version; saying it twice changes nothing."""
    topic, state = encode_snapshot(aggregate)
    await connection.execute(
        "INSERT INTO stored_snapshots (originator_id, originator_version, topic, state)"
        " VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (aggregate.id, aggregate.version, topic, state),
    )


async def last_snapshot(connection: Connection, id: UUID) -> Snapshotted | None:
    """The newest snapshot of the stream in today's shape, if there is one."""
    cursor = await connection.execute(
        "SELECT state FROM stored_snapshots WHERE originator_id = %s AND topic = ANY(%s)"
        " ORDER BY originator_version DESC LIMIT 1",
        (id, list(SNAPSHOT_TOPICS)),
    )
    row = await cursor.fetchone()
    return None if row is None else decode_snapshot(row[0])
