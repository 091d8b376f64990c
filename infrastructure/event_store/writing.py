"""Records a group of appends inside a transaction that the caller begins and commits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TypeAlias
from uuid import UUID

from application.append import Append, AppendResult
from application.errors import ApplicationError
from infrastructure.event_store.arrays import Array, bigints, byteas, texts, uuids
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.exchange import (
    Answer,
    Ask,
    Question,
    Statement,
    ask_through_cursors,
)
from infrastructure.event_store.placing import Encoded, Ledger, Placed, Row, encode
from infrastructure.postgres.listener import LOG
from infrastructure.postgres.locks import LOG_LOCK
from infrastructure.postgres.pool import Connection

NO_ROW = Row(UUID(int=0), 0, "", b"")

Verdicts: TypeAlias = list[Placed | ApplicationError]

TAKE_LOCK = Statement("lock", f"SELECT pg_advisory_xact_lock({LOG_LOCK.key})")

_VERSIONS = Statement(
    "versions",
    """
SELECT coalesce((SELECT max(originator_version) FROM stored_events e
                 WHERE e.originator_id = s.id), 0)
FROM unnest($1::uuid[]) WITH ORDINALITY AS s (id, place) ORDER BY place""",
)

# Stream by stream along the index: to a plain join the planner, for whom a new table is small until
# it has been analyzed, reads the whole log, and stays with that plan while the log grows.
_TOPICS = Statement(
    "topics",
    """
SELECT guarded.id, later.originator_version, later.topic
FROM unnest($1::uuid[], $2::bigint[]) AS guarded (id, after)
CROSS JOIN LATERAL (
    SELECT originator_version, topic FROM stored_events
    WHERE originator_id = guarded.id AND originator_version > guarded.after
    ORDER BY originator_version OFFSET 0) AS later""",
)

_ANSWERS = Statement(
    "answers",
    """
SELECT command_id, fingerprint, body, position FROM command_answers
WHERE command_id = ANY($1::uuid[])""",
)

# The default of notification_id is evaluated above the sort: positions rise in this order.
_INSERT = Statement(
    "insert",
    """
INSERT INTO stored_events (originator_id, originator_version, topic, state)
SELECT stream, version, topic, state
FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bytea[])
    WITH ORDINALITY AS written (stream, version, topic, state, place)
ORDER BY place RETURNING notification_id""",
)

_ANSWER = Statement(
    "answer",
    """
INSERT INTO command_answers (command_id, fingerprint, body, owner, position)
SELECT a.command_id, a.fingerprint, a.body, a.owner, coalesce(
    (SELECT notification_id FROM stored_events e
     WHERE e.originator_id = a.stream AND e.originator_version = a.version), 0)
FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::text[], $5::uuid[], $6::bigint[])
    AS a (command_id, fingerprint, body, owner, stream, version)""",
)

NOTIFY = Statement(
    "notify",
    f"SELECT pg_notify('{LOG}', max(notification_id)::text) FROM stored_events",  # noqa: S608
)


async def write_group(
    connection: Connection, appends: Sequence[Append], codec: Codec = CODEC
) -> list[AppendResult | ApplicationError]:
    """Records what may be recorded, and says of each append what became of it.

    Runs in the caller's READ COMMITTED transaction, and holds the lock of the log until
    that ends: call it last, commit soon. Nothing is durable, and no reader is woken, before
    the caller commits. A refusal (Conflict, AlreadyHandled, IdempotencyKeyReused) is a result, and
    does not keep the other appends from being recorded. Raises psycopg.Error.
    """
    for append in appends:
        await codec.prepare(append)  # by a connection of its own, before any lock is taken
    ask = partial(ask_through_cursors, connection)
    verdicts = await place_group(ask, [encode(append, codec) for append in appends])
    return results(verdicts, await ask(insertions(verdicts)))


async def append_in(connection: Connection, append: Append, codec: Codec = CODEC) -> AppendResult:
    """Record one append in the caller's transaction, which should end soon after.

    Raises Conflict, AlreadyHandled, IdempotencyKeyReused, psycopg.Error.
    """
    (result,) = await write_group(connection, [append], codec)
    if isinstance(result, ApplicationError):
        raise result
    return result


async def stream_versions(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, int]:
    """The current version of each of these streams; 0 where it does not exist."""
    (versions,) = await ask_through_cursors(connection, [Question(_VERSIONS, (uuids(ids),))])
    return {id: row[0] for id, row in zip(ids, versions.rows, strict=True)}


async def place_group(
    ask: Ask, group: Sequence[Encoded], before: Sequence[Question] = ()
) -> Verdicts:
    """Takes the lock of the log, and judges each append of the group, in order.

    Everything is asked in one exchange with the server, after what is to come `before`.
    """
    streams = list(dict.fromkeys(stream for encoded in group for stream in encoded.streams))
    guarded = guarded_streams(group)
    commands = {e.append.idempotency.command_id for e in group if e.append.idempotency is not None}
    _, versions, topics, answers = (
        await ask(
            [
                *before,
                Question(TAKE_LOCK),
                Question(_VERSIONS, (uuids(streams),)),
                Question(_TOPICS, (uuids(guarded), bigints(guarded.values()))),
                Question(_ANSWERS, (uuids(commands),)),
            ]
        )
    )[len(before) :]
    current = [row[0] for row in versions.rows]
    ledger = Ledger(
        versions=dict(zip(streams, current, strict=True)),
        topics={stream: [] for stream in guarded},
        answers={row[0]: (row[1], row[2], row[3]) for row in answers.rows},
    )
    for stream, version, topic in topics.rows:
        ledger.topics[stream].append((version, topic))
    return [ledger.place(encoded) for encoded in group]


def insertions(verdicts: Verdicts) -> list[Question]:
    """What records the rows of the placed appends, their answers and the wake-up.

    The first, if there is any, yields one position a row, in order.
    """
    placed = [verdict for verdict in verdicts if isinstance(verdict, Placed)]
    rows = [row for append in placed for row in append.rows]
    questions = []
    if rows:
        streams, versions, kinds, states = zip(*rows, strict=True)
        columns = (uuids(streams), bigints(versions), texts(kinds), byteas(states))
        questions.append(Question(_INSERT, columns))
    if answered := [append for append in placed if append.encoded.append.idempotency is not None]:
        questions.append(Question(_ANSWER, _answers(answered)))
    if rows:
        questions.append(Question(NOTIFY))
    return questions


def results(
    verdicts: Sequence[Placed | ApplicationError], inserted: Sequence[Answer]
) -> list[AppendResult | ApplicationError]:
    """What each append is told, given the answers to the insertions."""
    positions = inserted[0].rows if inserted else ()
    told: list[AppendResult | ApplicationError] = []
    end = 0
    for verdict in verdicts:
        if isinstance(verdict, Placed):
            end += len(verdict.rows)
            told.append(AppendResult(positions[end - 1][0] if end else 0, verdict.versions))
        else:
            told.append(verdict)
    return told


def _answers(answered: Sequence[Placed]) -> tuple[Array, ...]:
    answers = [append.encoded.append.idempotency for append in answered]
    ends = [append.rows[-1] if append.rows else NO_ROW for append in answered]
    return (
        uuids(answer.command_id for answer in answers if answer),
        texts(answer.fingerprint for answer in answers if answer),
        byteas(answer.body for answer in answers if answer),
        texts(answer.owner for answer in answers if answer),
        uuids(row.stream for row in ends),
        bigints(row.version for row in ends),
    )


def guarded_streams(group: Sequence[Encoded]) -> dict[UUID, int]:
    """The streams that must not have moved in some way, and since when."""
    since: dict[UUID, int] = {}
    for encoded in group:
        for condition in encoded.append.conditions:
            since[condition.stream] = min(
                condition.after, since.get(condition.stream, condition.after)
            )
    return since
