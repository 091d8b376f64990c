"""The quick way to record a group: on its writers' word, which the insert itself puts to the test.

One exchange with the server instead of two, and the lock of the log is held while the server
records and commits, never while an answer travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import msgspec

from infrastructure.event_store.arrays import bigints, byteas, texts, uuids
from infrastructure.event_store.exchange import Question, Statement
from infrastructure.event_store.placing import Encoded, Ledger, Placed
from infrastructure.event_store.writing import NOTIFY, TAKE_LOCK, guarded_streams

# Both conditions are looked at once, before the first row; along the index, as in `writing`.
_INSERT = Statement(
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


class Believed(msgspec.Struct, frozen=True):
    """A group as it will be recorded if its writers are right.

    `versions` are those of the streams before the group; of the `guarded` streams no event of
    `topics` has been recorded since the version given.
    """

    placed: list[Placed]
    versions: dict[UUID, int]
    guarded: dict[UUID, int]
    topics: frozenset[str]

    def questions(self) -> list[Question]:
        """Records all of the group, or nothing if anything that is believed is wrong.

        The second yields one position a row, in order, or none.
        """
        rows = [row for append in self.placed for row in append.rows]
        streams, versions, topics, states = zip(*rows, strict=True)
        written = (uuids(streams), bigints(versions), texts(topics), byteas(states))
        believed = (uuids(self.versions), bigints(self.versions.values()))
        guards = (uuids(self.guarded), bigints(self.guarded.values()), texts(self.topics))
        insert = Question(_INSERT, (*written, *believed, *guards))
        return [Question(TAKE_LOCK), insert, Question(NOTIFY)]


def believe(group: Sequence[Encoded]) -> Believed | None:
    """None where the writers do not say enough, or contradict each other."""
    appends = [encoded.append for encoded in group]
    versions: dict[UUID, int] = {}
    for write in (write for append in appends for write in append.writes):
        if write.expected_version is None:
            return None
        versions.setdefault(write.stream, write.expected_version)
    if any(append.idempotency is not None for append in appends):
        return None
    guarded = guarded_streams(group)
    ledger = Ledger(dict(versions), {stream: [] for stream in guarded}, {})
    verdicts = [ledger.place(encoded) for encoded in group]
    placed = [verdict for verdict in verdicts if isinstance(verdict, Placed) and verdict.rows]
    if len(placed) < len(verdicts):
        return None
    topics = frozenset(
        t for append in appends for condition in append.conditions for t in condition.topics
    )
    return Believed(placed, versions, guarded, topics)
