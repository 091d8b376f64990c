"""Records a group of appends inside a transaction that the caller begins and commits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias
from uuid import UUID

from psycopg import AsyncCursor
from psycopg.rows import TupleRow

from application.envelope import Append, Appended
from application.errors import ApplicationError
from infrastructure.event_store.arrays import bigints, byteas, texts, uuids
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.placing import Encoded, Ledger, Placed, Row, encode
from infrastructure.postgres.listener import LOG
from infrastructure.postgres.pool import Connection

LOCK = 0x75707472_0002  # "uptr", 2: whoever holds this advisory lock may write to the log

NO_ROW = Row(UUID(int=0), 0, "", b"")

Verdicts: TypeAlias = list[Placed | ApplicationError]

_TAKE_LOCK = "SELECT pg_advisory_xact_lock(%s)"

_VERSIONS = """
SELECT coalesce((SELECT max(originator_version) FROM stored_events e
                 WHERE e.originator_id = s.id), 0)
FROM unnest(%s) WITH ORDINALITY AS s (id, place) ORDER BY place"""

_TOPICS = """
SELECT e.originator_id, e.originator_version, e.topic
FROM unnest(%s, %s) AS guarded (id, after)
JOIN stored_events e ON e.originator_id = guarded.id AND e.originator_version > guarded.after"""

_ANSWERS = "SELECT command_id, fingerprint, body FROM command_answers WHERE command_id = ANY(%s)"

# The default of notification_id is evaluated above the sort: positions rise in this order.
_INSERT = """
INSERT INTO stored_events (originator_id, originator_version, topic, state)
SELECT stream, version, topic, state
FROM unnest(%s, %s, %s, %s) WITH ORDINALITY AS written (stream, version, topic, state, place)
ORDER BY place RETURNING notification_id"""

_ANSWER = """
INSERT INTO command_answers (command_id, fingerprint, body, position)
SELECT a.command_id, a.fingerprint, a.body, coalesce(e.notification_id, 0)
FROM unnest(%s, %s, %s, %s, %s) AS a (command_id, fingerprint, body, stream, version)
LEFT JOIN stored_events e ON e.originator_id = a.stream AND e.originator_version = a.version"""

_NOTIFY = "SELECT pg_notify(%s, max(notification_id)::text) FROM stored_events"


async def write_group(
    connection: Connection, appends: Sequence[Append], codec: Codec = CODEC
) -> list[Appended | ApplicationError]:
    """Records what may be recorded, and says of each append what became of it.

    Runs in the caller's READ COMMITTED transaction, and holds the lock of the log until
    that ends: call it last, commit soon. Nothing is durable, and no reader is woken, before
    the caller commits. A refusal (Conflict, AlreadyHandled, KeyReused) is a result, and does
    not keep the other appends from being recorded. Raises psycopg.Error.
    """
    async with connection.pipeline():
        verdicts = await place_group(connection, [encode(append, codec) for append in appends])
        positions = await send_rows(connection, verdicts)
        return results(verdicts, await positions.fetchall() if positions else [])


async def stream_versions(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, int]:
    """The current version of each of these streams; 0 where it does not exist."""
    cursor = await connection.execute(_VERSIONS, (uuids(ids),), prepare=True)
    return {id: row[0] for id, row in zip(ids, await cursor.fetchall(), strict=True)}


async def place_group(connection: Connection, group: Sequence[Encoded]) -> Verdicts:
    """Takes the lock of the log, and judges each append of the group, in order.

    Everything is asked in one exchange with the server; inside a pipeline.
    """
    streams = list(dict.fromkeys(stream for encoded in group for stream in encoded.streams))
    guarded = _guarded(group)
    commands = {e.append.answer.command_id for e in group if e.append.answer is not None}

    await connection.execute(_TAKE_LOCK, (LOCK,), prepare=True)
    versions = await connection.execute(_VERSIONS, (uuids(streams),), prepare=True)
    topics = answers = None
    if guarded:
        after = (uuids(guarded), bigints(guarded.values()))
        topics = await connection.execute(_TOPICS, after, prepare=True)
    if commands:
        answers = await connection.execute(_ANSWERS, (uuids(commands),), prepare=True)

    current = [row[0] for row in await versions.fetchall()]
    ledger = Ledger(
        versions=dict(zip(streams, current, strict=True)),
        topics={stream: [] for stream in guarded},
        answers={},
    )
    for stream, version, topic in await topics.fetchall() if topics else ():
        ledger.topics[stream].append((version, topic))
    for command, fingerprint, body in await answers.fetchall() if answers else ():
        ledger.answers[command] = (fingerprint, body)
    return [ledger.place(encoded) for encoded in group]


async def send_rows(connection: Connection, verdicts: Verdicts) -> AsyncCursor[TupleRow] | None:
    """Sends the rows of the placed appends, their answers and the wake-up, inside a pipeline.

    The cursor yields one position a row, in order; None where there is nothing to record.
    """
    placed = [verdict for verdict in verdicts if isinstance(verdict, Placed)]
    rows = [row for append in placed for row in append.rows]
    positions = None
    if rows:
        streams, versions, kinds, states = zip(*rows, strict=True)
        columns = (uuids(streams), bigints(versions), texts(kinds), byteas(states))
        positions = await connection.execute(_INSERT, columns, prepare=True)
    if answered := [append for append in placed if append.encoded.append.answer is not None]:
        await _send_answers(connection, answered)
    if rows:
        await connection.execute(_NOTIFY, (LOG,), prepare=True)
    return positions


def results(
    verdicts: Verdicts, positions: Sequence[tuple[int, ...]]
) -> list[Appended | ApplicationError]:
    """What each append is told, given the positions of all rows in order."""
    told: list[Appended | ApplicationError] = []
    end = 0
    for verdict in verdicts:
        if isinstance(verdict, Placed):
            end += len(verdict.rows)
            told.append(Appended(positions[end - 1][0] if end else 0, verdict.versions))
        else:
            told.append(verdict)
    return told


async def _send_answers(connection: Connection, answered: Sequence[Placed]) -> None:
    answers = [append.encoded.append.answer for append in answered]
    ends = [append.rows[-1] if append.rows else NO_ROW for append in answered]
    columns = (
        uuids(answer.command_id for answer in answers if answer),
        texts(answer.fingerprint for answer in answers if answer),
        byteas(answer.body for answer in answers if answer),
        uuids(row.stream for row in ends),
        bigints(row.version for row in ends),
    )
    await connection.execute(_ANSWER, columns, prepare=True)


def _guarded(group: Sequence[Encoded]) -> dict[UUID, int]:
    """The streams that must not have moved in some way, and since when."""
    since: dict[UUID, int] = {}
    for encoded in group:
        for unless in encoded.append.unless:
            since[unless.stream] = min(unless.after, since.get(unless.stream, unless.after))
    return since
