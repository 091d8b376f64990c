"""The quick way to record a group: on its writers' word, which the insert itself puts to the test.

One exchange with the server instead of two, and the lock of the log is held while the server
records and commits, never while an answer travels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias
from uuid import UUID

import msgspec

from application.append import Append, AppendCondition, AppendResult
from application.errors import AlreadyHandled, ApplicationError, Conflict, IdempotencyKeyReused
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.libpq import (
    Array,
    Execute,
    QueryResult,
    SqlQuery,
    Statement,
    bigints,
    byteas,
    execute_with_psycopg,
    texts,
    uuids,
)
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.listener import LOG
from infrastructure.postgres.locks import LOG_LOCK

# Who may write what: each append of a group gets its verdict, and its rows their versions.


class Row(NamedTuple):
    """Row of `stored_events`, without the position, which the database assigns."""

    stream: UUID
    version: int
    topic: str
    state: bytes


class EncodedAppend(msgspec.Struct, frozen=True):
    """Append whose events are encoded; each write is a tuple of topics and states.

    `size` is its number of events.
    """

    append: Append
    contents: tuple[tuple[tuple[str, bytes], ...], ...]
    size: int

    @property
    def streams(self) -> Iterator[UUID]:
        """Return the streams that it writes or guards, some more than once."""
        for write in self.append.writes:
            yield write.stream
        for condition in self.append.conditions:
            yield condition.stream


class AcceptedAppend(msgspec.Struct, frozen=True):
    """An append that may be recorded: its rows, and the versions its streams will have."""

    encoded: EncodedAppend
    rows: list[Row]
    versions: dict[UUID, int]


def encode(append: Append, codec: Codec = CODEC) -> EncodedAppend:
    """Return the append with its events as bytes."""
    contents = tuple(
        tuple(codec.encode(event, append.cause, write.owner) for event in write.events)
        for write in append.writes
    )
    return EncodedAppend(append, contents, sum(map(len, contents)))


class VersionTracker(msgspec.Struct):
    """Versions of the streams that a group touches, advanced by each accepted append.

    `versions` has every such stream (0: it does not exist), `topics` what was recorded in
    guarded streams lately as version and topic, `answers` fingerprint, body and position by command
    (None: it is part of this group).
    """

    versions: dict[UUID, int]
    topics: dict[UUID, list[tuple[int, str]]]
    answers: dict[UUID, tuple[str, bytes, int | None]]

    def check(self, encoded: EncodedAppend) -> AcceptedAppend | ApplicationError:
        """Return the verdict on one append; a rejected one leaves the versions as they were."""
        refusal = self._repeated(encoded.append) or self._guarded(encoded.append)
        if refusal is not None:
            return refusal
        placed = self._number(encoded)
        if isinstance(placed, AcceptedAppend):
            self._take(placed)
        return placed

    def _repeated(self, append: Append) -> ApplicationError | None:
        if append.idempotency is None:
            return None
        known = self.answers.get(append.idempotency.command_id)
        if known is None:
            return None
        fingerprint, body, position = known
        if fingerprint != append.idempotency.fingerprint:
            return IdempotencyKeyReused("the command id was used before for another request")
        return AlreadyHandled(body, position)

    def _guarded(self, append: Append) -> Conflict | None:
        for condition in append.conditions:
            if self._violates(condition):
                return Conflict(condition.stream, condition.after, self.versions[condition.stream])
        return None

    def _violates(self, condition: AppendCondition) -> bool:
        return any(
            version > condition.after and topic in condition.topics
            for version, topic in self.topics.get(condition.stream, ())
        )

    def _number(self, encoded: EncodedAppend) -> AcceptedAppend | Conflict:
        rows: list[Row] = []
        versions: dict[UUID, int] = {}
        for write, content in zip(encoded.append.writes, encoded.contents, strict=True):
            current = versions.get(write.stream, self.versions[write.stream])
            if write.expected_version is not None and write.expected_version != current:
                return Conflict(write.stream, write.expected_version, current)
            for topic, state in content:
                current += 1
                rows.append(Row(write.stream, current, topic, state))
            versions[write.stream] = current
        return AcceptedAppend(encoded, rows, versions)

    def _take(self, placed: AcceptedAppend) -> None:
        self.versions.update(placed.versions)
        for row in placed.rows:
            if row.stream in self.topics:
                self.topics[row.stream].append((row.version, row.topic))
        if answer := placed.encoded.append.idempotency:
            self.answers[answer.command_id] = (answer.fingerprint, answer.body, None)


# Records a group of appends inside a transaction that the caller begins and commits.

NO_ROW = Row(UUID(int=0), 0, "", b"")

Verdicts: TypeAlias = list[AcceptedAppend | ApplicationError]

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


async def append_group(
    connection: Connection, appends: Sequence[Append], codec: Codec = CODEC
) -> list[AppendResult | ApplicationError]:
    """Append the valid appends of a group and return the result of each.

    Runs in the caller's READ COMMITTED transaction and holds the lock of the log until its end:
    call it last, commit soon. Nothing is durable, and no reader is notified, before the commit. A
    rejection (Conflict, AlreadyHandled, IdempotencyKeyReused) is a result and does not affect the
    other appends. Raises psycopg.Error.
    """
    for append in appends:
        await codec.prepare(append)  # by a connection of its own, before any lock is taken
    ask = partial(execute_with_psycopg, connection)
    verdicts = await check_group(ask, [encode(append, codec) for append in appends])
    return append_results(verdicts, await ask(insert_queries(verdicts)))


async def append_in(connection: Connection, append: Append, codec: Codec = CODEC) -> AppendResult:
    """Record one append in the caller's transaction, which should end soon after.

    Raises Conflict, AlreadyHandled, IdempotencyKeyReused, psycopg.Error.
    """
    (result,) = await append_group(connection, [append], codec)
    if isinstance(result, ApplicationError):
        raise result
    return result


async def stream_versions(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, int]:
    """Return the current version of each stream; 0 if it does not exist."""
    (versions,) = await execute_with_psycopg(connection, [SqlQuery(_VERSIONS, (uuids(ids),))])
    return {id: row[0] for id, row in zip(ids, versions.rows, strict=True)}


async def check_group(
    ask: Execute, group: Sequence[EncodedAppend], before: Sequence[SqlQuery] = ()
) -> Verdicts:
    """Acquire the lock of the log and judge each append of the group, in order.

    All queries go in one round trip, after those in `before`.
    """
    streams = list(dict.fromkeys(stream for encoded in group for stream in encoded.streams))
    guarded = condition_streams(group)
    commands = {e.append.idempotency.command_id for e in group if e.append.idempotency is not None}
    _, versions, topics, answers = (
        await ask(
            [
                *before,
                SqlQuery(TAKE_LOCK),
                SqlQuery(_VERSIONS, (uuids(streams),)),
                SqlQuery(_TOPICS, (uuids(guarded), bigints(guarded.values()))),
                SqlQuery(_ANSWERS, (uuids(commands),)),
            ]
        )
    )[len(before) :]
    current = [row[0] for row in versions.rows]
    ledger = VersionTracker(
        versions=dict(zip(streams, current, strict=True)),
        topics={stream: [] for stream in guarded},
        answers={row[0]: (row[1], row[2], row[3]) for row in answers.rows},
    )
    for stream, version, topic in topics.rows:
        ledger.topics[stream].append((version, topic))
    return [ledger.check(encoded) for encoded in group]


def insert_queries(verdicts: Verdicts) -> list[SqlQuery]:
    """Return the queries that insert the accepted appends, idempotency records and NOTIFY.

    The first one returns one position per row, in order.
    """
    placed = [verdict for verdict in verdicts if isinstance(verdict, AcceptedAppend)]
    rows = [row for append in placed for row in append.rows]
    questions = []
    if rows:
        streams, versions, kinds, states = zip(*rows, strict=True)
        columns = (uuids(streams), bigints(versions), texts(kinds), byteas(states))
        questions.append(SqlQuery(_INSERT, columns))
    if answered := [append for append in placed if append.encoded.append.idempotency is not None]:
        questions.append(SqlQuery(_ANSWER, _answers(answered)))
    if rows:
        questions.append(SqlQuery(NOTIFY))
    return questions


def append_results(
    verdicts: Sequence[AcceptedAppend | ApplicationError], inserted: Sequence[QueryResult]
) -> list[AppendResult | ApplicationError]:
    """Return the result of each append, given the results of the insert queries."""
    positions = inserted[0].rows if inserted else ()
    results: list[AppendResult | ApplicationError] = []
    end = 0
    for verdict in verdicts:
        if isinstance(verdict, AcceptedAppend):
            end += len(verdict.rows)
            results.append(AppendResult(positions[end - 1][0] if end else 0, verdict.versions))
        else:
            results.append(verdict)
    return results


def _answers(answered: Sequence[AcceptedAppend]) -> tuple[Array, ...]:
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


def condition_streams(group: Sequence[EncodedAppend]) -> dict[UUID, int]:
    """Return the guarded streams, and the versions since which they must not have changed."""
    since: dict[UUID, int] = {}
    for encoded in group:
        for condition in encoded.append.conditions:
            since[condition.stream] = min(
                condition.after, since.get(condition.stream, condition.after)
            )
    return since


# Both conditions are looked at once, before the first row; along the index, as in `writing`.
_OPTIMISTIC_INSERT = Statement(
    "insert_at_once",
    """
INSERT INTO stored_events (originator_id, originator_version, topic, state)
SELECT stream, version, topic, state
FROM unnest($1::uuid[], $2::bigint[], $3::text[], $4::bytea[])
    WITH ORDINALITY AS written (stream, version, topic, state, place)
WHERE NOT EXISTS (
    SELECT FROM unnest($5::uuid[], $6::bigint[]) AS believed (stream, version)
    WHERE version <> coalesce((SELECT max(originator_version) FROM stored_events e
                               WHERE e.originator_id = believed.stream), 0))
AND NOT EXISTS (
    SELECT FROM unnest($7::uuid[], $8::bigint[]) AS guarded (stream, after)
    CROSS JOIN LATERAL (
        SELECT topic FROM stored_events
        WHERE originator_id = guarded.stream AND originator_version > guarded.after
        ORDER BY originator_version OFFSET 0) AS later
    WHERE later.topic = ANY($9::text[]))
ORDER BY place RETURNING notification_id""",
)


class OptimisticGroup(msgspec.Struct, frozen=True):
    """A group as it will be recorded if its writers are right.

    `versions` are those of the streams before the group; of the `guarded` streams no event of
    `topics` has been recorded since the version given.
    """

    placed: list[AcceptedAppend]
    versions: dict[UUID, int]
    guarded: dict[UUID, int]
    topics: frozenset[str]

    def questions(self) -> list[SqlQuery]:
        """Records all of the group, or nothing if anything that is believed is wrong.

        The second yields one position a row, in order, or none.
        """
        rows = [row for append in self.placed for row in append.rows]
        streams, versions, topics, states = zip(*rows, strict=True)
        written = (uuids(streams), bigints(versions), texts(topics), byteas(states))
        believed = (uuids(self.versions), bigints(self.versions.values()))
        guards = (uuids(self.guarded), bigints(self.guarded.values()), texts(self.topics))
        insert = SqlQuery(_OPTIMISTIC_INSERT, (*written, *believed, *guards))
        return [SqlQuery(TAKE_LOCK), insert, SqlQuery(NOTIFY)]


def plan_optimistic(group: Sequence[EncodedAppend]) -> OptimisticGroup | None:
    """Return the plan; None if expected versions are missing or contradict each other."""
    appends = [encoded.append for encoded in group]
    versions: dict[UUID, int] = {}
    for write in (write for append in appends for write in append.writes):
        if write.expected_version is None:
            return None
        versions.setdefault(write.stream, write.expected_version)
    if any(append.idempotency is not None for append in appends):
        return None
    guarded = condition_streams(group)
    ledger = VersionTracker(dict(versions), {stream: [] for stream in guarded}, {})
    verdicts = [ledger.check(encoded) for encoded in group]
    placed = [
        verdict for verdict in verdicts if isinstance(verdict, AcceptedAppend) and verdict.rows
    ]
    if len(placed) < len(verdicts):
        return None
    topics = frozenset(
        t for append in appends for condition in append.conditions for t in condition.topics
    )
    return OptimisticGroup(placed, versions, guarded, topics)
