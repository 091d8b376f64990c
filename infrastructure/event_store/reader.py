"""The queries of the log; each takes a connection, and gives events at their places."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.ports.event_log import Origin
from infrastructure.event_store.codec import CODEC, Codec, UnreadableEvent
from infrastructure.postgres.connection import Connection

StoredRow: TypeAlias = tuple[UUID, int, int, str, bytes]

_COLUMNS = "SELECT originator_id, originator_version, notification_id, topic, state"
_STREAM = f"""{_COLUMNS} FROM stored_events
WHERE originator_id = %s AND originator_version > %s ORDER BY originator_version LIMIT %s"""
_STREAM_UPTO = f"""{_COLUMNS} FROM stored_events
WHERE originator_id = %s AND originator_version > %s AND notification_id <= %s
ORDER BY originator_version LIMIT %s"""
_LOG = f"""{_COLUMNS} FROM stored_events
WHERE notification_id > %s ORDER BY notification_id LIMIT %s"""
_LOG_OF_TOPICS = f"""{_COLUMNS} FROM stored_events
WHERE notification_id > %s AND topic = ANY(%s) ORDER BY notification_id LIMIT %s"""
_BACKWARDS = f"""{_COLUMNS} FROM stored_events
WHERE notification_id <= %s ORDER BY notification_id DESC LIMIT %s"""
_FIRSTS = f"""{_COLUMNS} FROM stored_events
WHERE originator_id = ANY(%s) AND originator_version = 1"""
_OF_TOPICS = f"""{_COLUMNS} FROM stored_events
WHERE originator_id = ANY(%s) AND topic = ANY(%s) ORDER BY notification_id"""
_STATE_OF_FIRST = """SELECT state FROM stored_events
WHERE originator_id = %s AND originator_version = 1"""
_HEAD = "SELECT coalesce(max(notification_id), 0) FROM stored_events"


class _First(msgspec.Struct):
    owner: str = ""
    batch: UUID | None = None


class _StateOfFirst(msgspec.Struct):
    event: _First


_decode_first = msgspec.json.Decoder(_StateOfFirst).decode

MAX_TIME_SKEW_POSITIONS = (
    1000  # positions within which events may lie out of the order of their moments
)


async def read_stream(
    connection: Connection,
    id: UUID,
    after: int,
    upto_position: int | None,
    limit: int,
    codec: Codec = CODEC,
) -> list[RecordedEvent]:
    """Return events of a stream beyond version `after`, oldest first. Raises UnreadableEvent."""
    if upto_position is None:
        return await _read(connection, codec, _STREAM, id, after, limit)
    return await _read(connection, codec, _STREAM_UPTO, id, after, upto_position, limit)


async def read_log(
    connection: Connection,
    after: int,
    limit: int,
    topics: Sequence[str] | None,
    codec: Codec = CODEC,
) -> list[RecordedEvent]:
    """Return events beyond position `after`, in order. Raises UnreadableEvent."""
    if topics is None:
        return await _read(connection, codec, _LOG, after, limit)
    return await _read(connection, codec, _LOG_OF_TOPICS, after, list(topics), limit)


async def read_first_events(
    connection: Connection, streams: Collection[UUID], codec: Codec = CODEC
) -> list[RecordedEvent]:
    """Return the first event of each stream, in any order. Raises UnreadableEvent."""
    return await _read(connection, codec, _FIRSTS, list(streams)) if streams else []


async def read_events_of_topics(
    connection: Connection,
    streams: Collection[UUID],
    topics: Collection[str],
    codec: Codec = CODEC,
) -> list[RecordedEvent]:
    """Return the events of these topics in these streams, in log order. Raises UnreadableEvent."""
    if not streams:
        return []
    return await _read(connection, codec, _OF_TOPICS, list(streams), list(topics))


async def read_origin(connection: Connection, id: UUID) -> Origin | None:
    """Return the owner in the first event of this stream, and the batch of an upload.

    Nothing is decrypted.
    """
    row = await (await connection.execute(_STATE_OF_FIRST, (id,), prepare=True)).fetchone()
    if row is None:
        return None
    first = _decode_first(row[0]).event
    return Origin(first.owner, first.batch)


async def read_id_secret(connection: Connection) -> bytes:
    """Return the secret of the derived ids; empty for a database older than the secret.

    Raises LookupError if the row was deleted: other ids would turn every resend into a new upload.
    """
    row = await (await connection.execute("SELECT secret FROM derived_ids")).fetchone()
    if row is None:
        raise LookupError("the table derived_ids has lost its row; restore it from a backup")
    return bytes(row[0])


async def read_head(connection: Connection) -> int:
    """Return the last position, 0 for an empty log."""
    row = await (await connection.execute(_HEAD, prepare=True)).fetchone()
    return int(row[0]) if row else 0


async def last_position_at(connection: Connection, moment: datetime, codec: Codec = CODEC) -> int:
    """Return the position of the last event that happened up to this moment, 0 without one.

    Positions follow the order of commits, and an event is committed a moment after it happened, so
    neighbours may be slightly out of order. A binary search over positions finds the neighbourhood;
    among the events within SKEW positions on either side the last one not later than the moment is
    taken.
    """
    low, high = 0, await read_head(connection)
    while low < high:
        middle = (low + high) // 2
        found = await read_log(connection, middle, 1, None, codec)
        if found and found[0].event.at <= moment:
            low = found[0].position
        else:
            high = middle
    beyond = await read_log(connection, low, MAX_TIME_SKEW_POSITIONS, None, codec)
    before = await _read(connection, codec, _BACKWARDS, low, MAX_TIME_SKEW_POSITIONS)
    for recorded in (*reversed(beyond), *before):
        if recorded.event.at <= moment:
            return recorded.position
    return 0


async def _read(
    connection: Connection, codec: Codec, query: Any, *parameters: object
) -> list[RecordedEvent]:
    cursor = connection.cursor(binary=True)
    await cursor.execute(query, parameters, prepare=True)
    rows: list[StoredRow] = await cursor.fetchall()
    await codec.load_keys(row[4] for row in rows)
    return [recorded_of(codec, *row) for row in rows]


def recorded_of(
    codec: Codec, stream: UUID, version: int, position: int, topic: str, state: bytes
) -> RecordedEvent:
    """Decode a row whose key was learned before. Raises UnreadableEvent."""
    try:
        event, cause = codec.decode(topic, state)
    except UnreadableEvent as error:
        raise UnreadableEvent(f"position {position}, {stream} version {version}: {error}") from None
    return RecordedEvent(stream, version, position, event, cause)
