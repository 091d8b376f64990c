"""Verification of the tables derived from the log, in one database snapshot.

Events are read stream by stream, in the order of the primary key: one aggregate at a time is in
memory, however long the log is. Compared are snapshots, the rows of the orchestrator, webhooks,
idempotency records, tracking positions, and the outbox of deliveries. `docs/audit.md` lists what
is not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, LiteralString, TypeVar
from uuid import UUID

from psycopg import IsolationLevel
from psycopg.rows import dict_row

from application.append import RecordedEvent
from application.audit.derived import MAX_FINDINGS, DerivedCheck
from application.ports.webhooks import PlannedDelivery
from application.webhooks.notifications import (
    WebhookIndex,
    plan_test_delivery,
    split_at_webhook_change,
)
from infrastructure.audit.access_check import AccessCheck
from infrastructure.audit.stream_check import Positions, Rows, StreamCheck
from infrastructure.audit.verifier import Findings, difference
from infrastructure.event_store.codec import Codec, key_id_of
from infrastructure.event_store.event_log import SNAPSHOT_TOPICS
from infrastructure.event_store.reader import last_position_at, read_log, recorded_of
from infrastructure.jobs.tables import UPLOAD_COLUMNS, batch_from_row, upload_from_row
from infrastructure.postgres.connection import Connection, connect, fetch_rows
from infrastructure.postgres.tracked_positions import (
    ORCHESTRATOR_POSITION,
    READ_MODEL_POSITION,
    WEBHOOKS_POSITION,
)
from infrastructure.webhooks.dispatcher import PostgresDispatcherStore, plan_deliveries

Row = TypeVar("Row")
T = TypeVar("T")

ROWS_PER_CHUNK = 2_000  # events in memory at a time
RETENTION = 14 * 24 * 3600.0  # seconds: the default of webhook_retention

ORCHESTRATOR = ORCHESTRATOR_POSITION.name
READ_MODEL = READ_MODEL_POSITION.name
WEBHOOKS = WEBHOOKS_POSITION.name

_FIRST = UUID(int=0)

_EVENTS = """SELECT originator_id, originator_version, notification_id, topic, state
FROM stored_events WHERE (originator_id, originator_version) > (%s, %s)
ORDER BY originator_id, originator_version LIMIT %s"""
_UPLOADS = f"SELECT {UPLOAD_COLUMNS} FROM orchestration.members m WHERE m.upload = ANY(%s)"  # noqa: S608
_BATCHES = "SELECT * FROM orchestration.batches WHERE batch = ANY(%s)"
_ENDPOINTS = "SELECT id, owner, enabled, webhook FROM webhooks.endpoints WHERE id = ANY(%s)"
_SNAPSHOTS = """SELECT originator_id, originator_version, topic, state FROM stored_snapshots
WHERE originator_id = ANY(%s) AND topic = ANY(%s) ORDER BY 1, 2"""

_TRACKED = "SELECT application_name, notification_id FROM notification_tracking"
_HEAD = "SELECT coalesce(max(notification_id), 0) FROM stored_events"
_NEWEST_ROW = """SELECT greatest((SELECT max(position) FROM read_model.batches),
(SELECT max(position) FROM read_model.uploads), (SELECT max(position) FROM read_model.attempts))"""
_LAST_DELIVERY = "SELECT max(position) FROM webhooks.deliveries"

# Rows of derived tables whose stream has no event at all: the pass over the log does not meet them.
_STRAYS: tuple[tuple[str, LiteralString], ...] = tuple(
    (
        table,
        f"""SELECT DISTINCT t.{key}::text FROM {table} t WHERE NOT EXISTS (
        SELECT FROM stored_events e WHERE e.originator_id = t.{key}) ORDER BY 1 LIMIT %s""",  # noqa: S608
    )
    for table, key in (
        ("stored_snapshots", "originator_id"),
        ("orchestration.members", "upload"),
        ("orchestration.batches", "batch"),
        ("webhooks.endpoints", "id"),
    )
)

# A forged retry row would be carried out like a requested one.
_RETRIES = """SELECT r.batch::text FROM orchestration.retries r WHERE NOT EXISTS (
SELECT FROM stored_events e WHERE e.originator_id = r.batch AND e.topic = 'batch.retry_requested')
ORDER BY 1 LIMIT %s"""

# Which uploads are selected, and whether a batch may end, is read there instead of in `members`.
_ACTIVE = """SELECT coalesce(a.upload, m.upload)::text, a.kind, m.kind
FROM orchestration.active_members a FULL JOIN (
    SELECT upload, batch, owner, orchestration.kind_of(state) AS kind FROM orchestration.members
    WHERE orchestration.kind_of(state) IS NOT NULL) m USING (upload)
WHERE (a.batch, a.owner, a.kind) IS DISTINCT FROM (m.batch, m.owner, m.kind)
ORDER BY 1 LIMIT %s"""

_ANSWERS = """SELECT a.command_id::text, a.position FROM command_answers a
LEFT JOIN stored_events e ON e.notification_id = a.position
WHERE a.position <> 0 AND (e.state IS NULL
    OR position(convert_to('"command":"' || a.command_id || '"', 'UTF8') IN e.state) = 0)
ORDER BY 1 LIMIT %s"""

# A secret that signs and is gone could not; those that sign no more are swept.
_SECRETS = """SELECT e.id::text, named.secret ->> 'id' FROM webhooks.endpoints e
CROSS JOIN LATERAL jsonb_array_elements(e.webhook -> 'secrets') AS named (secret)
WHERE NOT EXISTS (SELECT FROM webhooks.secrets s
    WHERE s.id::text = named.secret ->> 'id' AND s.webhook = e.id)
AND coalesce((named.secret ->> 'until')::timestamptz > now(), true)
ORDER BY 1 LIMIT %s"""

_COUNTS = """SELECT (SELECT count(*) FROM stored_snapshots),
(SELECT count(*) FROM orchestration.members), (SELECT count(*) FROM orchestration.batches),
(SELECT count(*) FROM webhooks.endpoints), (SELECT count(*) FROM command_answers)"""
_COUNTED = ("snapshots", "members", "batches", "webhooks", "answers")

_KIND_OF_STRAY = {
    "stored_snapshots": "snapshot_altered",
    "orchestration.members": "orchestration_altered",
    "orchestration.batches": "orchestration_altered",
    "webhooks.endpoints": "webhook_altered",
}


async def check_derived(url: str, codec: Codec, *, retention: float = RETENTION) -> DerivedCheck:
    """Compare every derived row with the state that follows from the log.

    `retention` is for how many seconds deliveries of webhooks are kept.

    Raises psycopg.Error, Unavailable, UnreadableEvent.
    """
    connection = await connect(url, name="verify-derived")
    try:
        await connection.set_isolation_level(IsolationLevel.REPEATABLE_READ)
        async with connection.transaction():
            return await _check(connection, codec, retention)
    finally:
        await connection.close()


async def _check(connection: Connection, codec: Codec, retention: float) -> DerivedCheck:
    findings = Findings()
    tracked = dict(await fetch_rows(connection, _TRACKED))
    ((head,),) = await fetch_rows(connection, _HEAD)
    positions = Positions(tracked.get(ORCHESTRATOR), tracked.get(WEBHOOKS), tracked.get(READ_MODEL))
    for name in (ORCHESTRATOR, WEBHOOKS, READ_MODEL):
        if tracked.get(name, 0) > head:
            detail = f"is at position {tracked[name]}, beyond the end of the log at {head}"
            findings.add("tracking_moved", "notification_tracking", name, detail)
    streams = StreamCheck(positions, findings)
    access = AccessCheck(connection, codec, findings)
    async for events, rows in _pages(connection, codec, findings):
        streams.take(events, rows)
        await _check_access(access, streams)
    streams.end()
    await _check_access(access, streams)
    await _check_read_model(connection, findings, positions, streams.newest_row_event)
    await _check_deliveries(connection, findings, positions)
    await check_deliveries(
        connection,
        codec,
        findings,
        streams.webhook_events,
        through=min(positions.webhooks or 0, head),
        retention=retention,
    )
    await _check_strays(connection, findings)
    (counts,) = await fetch_rows(connection, _COUNTS)
    checked = dict(zip(_COUNTED, counts, strict=True)) | await access.end()
    return DerivedCheck(head=head, checked=checked, findings=findings.found)


async def _check_access(access: AccessCheck, streams: StreamCheck) -> None:
    for key, owner in streams.boxes:
        access.met_box(key, owner)
    await access.met(streams.access)
    streams.boxes.clear()
    streams.access.clear()


async def _pages(
    connection: Connection, codec: Codec, findings: Findings
) -> AsyncIterator[tuple[Sequence[Any], Rows]]:
    """Yield events in the order of their streams, with the derived rows of those streams."""
    stream, version = _FIRST, -1
    while True:
        found = await fetch_rows(connection, _EVENTS, stream, version, ROWS_PER_CHUNK)
        if not found:
            return
        await codec.load_keys(row[4] for row in found)
        streams = list(dict.fromkeys(row[0] for row in found))
        events = [(recorded_of(codec, *row), key_id_of(row[4])) for row in found]
        yield events, await _derived(connection, streams, findings)
        stream, version = found[-1][:2]


async def _derived(connection: Connection, streams: list[UUID], findings: Findings) -> Rows:
    batches = connection.cursor(row_factory=dict_row)
    await batches.execute(_BATCHES, (streams,))
    snapshots: dict[UUID, dict[int, tuple[str, bytes]]] = {}
    for id, version, topic, state in await fetch_rows(
        connection, _SNAPSHOTS, streams, list(SNAPSHOT_TOPICS)
    ):
        snapshots.setdefault(id, {})[version] = (topic, state)
    uploads = {row[0]: row for row in await fetch_rows(connection, _UPLOADS, streams)}
    tracked = {row["batch"]: row for row in await batches.fetchall()}
    return Rows(
        uploads=_readable(uploads, upload_from_row, "orchestration.members", findings),
        batches=_readable(tracked, batch_from_row, "orchestration.batches", findings),
        webhooks={row[0]: row[1:] for row in await fetch_rows(connection, _ENDPOINTS, streams)},
        snapshots=snapshots,
    )


def _readable(
    rows: Mapping[UUID, Row], read: Callable[[Row], T], table: str, findings: Findings
) -> dict[UUID, T]:
    """Return the rows that the orchestrator can read; report the others as findings."""
    found = {}
    for key, row in rows.items():
        try:
            found[key] = read(row)
        except (ValueError, TypeError, AttributeError) as error:
            detail = f"holds what nothing writes there: {error}"
            findings.add("orchestration_altered", table, key, detail)
    return found


async def _check_read_model(
    connection: Connection, findings: Findings, positions: Positions, newest_event: int
) -> None:
    """Check the tracked position of the read model against its newest row.

    Every event of an upload or a batch leaves its position in a row, so the newest row has the
    position of the newest such event up to the tracked position.
    """
    ((newest,),) = await fetch_rows(connection, _NEWEST_ROW)
    newest, tracked = newest or 0, positions.read_model
    if tracked is None or newest > tracked or newest < newest_event:
        at = "has no position" if tracked is None else f"is at position {tracked}"
        detail = f"{at}, but its newest row is of position {newest}"
        if tracked is not None and newest < newest_event:
            detail += f", although position {newest_event} changes one too"
        findings.add("tracking_moved", "notification_tracking", READ_MODEL, detail)


async def _check_deliveries(
    connection: Connection, findings: Findings, positions: Positions
) -> None:
    ((last,),) = await fetch_rows(connection, _LAST_DELIVERY)
    tracked = positions.webhooks
    if tracked is None or (last or 0) > tracked:
        at = "has no position" if tracked is None else f"is at position {tracked}"
        detail = f"{at}, but the newest delivery is of position {last or 0}"
        findings.add("tracking_moved", "notification_tracking", WEBHOOKS, detail)


async def _check_strays(connection: Connection, findings: Findings) -> None:
    for table, query in _STRAYS:
        for (key,) in await fetch_rows(connection, query, MAX_FINDINGS):
            kind: Any = _KIND_OF_STRAY[table]
            findings.add(kind, table, key, "no event in the log is of this stream")
    for (key,) in await fetch_rows(connection, _RETRIES, MAX_FINDINGS):
        detail = "no retry of this batch was requested"
        findings.add("orchestration_altered", "orchestration.retries", key, detail)
    for key, found, expected in await fetch_rows(connection, _ACTIVE, MAX_FINDINGS):
        detail = f"differs from orchestration.members: {found or 'missing'}, not {expected}"
        if expected is None:
            detail = "nothing may be done with this upload any more"
        elif found == expected:
            detail = "is of another batch or owner than in orchestration.members"
        findings.add("orchestration_altered", "orchestration.active_members", key, detail)
    for key, secret in await fetch_rows(connection, _SECRETS, MAX_FINDINGS):
        detail = f"its secret {secret} is missing"
        findings.add("webhook_altered", "webhooks.secrets", key, detail)
    for key, position in await fetch_rows(connection, _ANSWERS, MAX_FINDINGS):
        detail = f"the event at position {position} was not recorded by this command"
        findings.add("answer_altered", "command_answers", key, detail)


# The outbox against the deliveries that follow from the log. An inserted delivery would send one
# owner's event to another owner's receiver; a deleted delivery, or one that the follower's position
# was moved past, would never be sent. Deliveries are removed after the retention time, so only
# events recorded since then are checked.

EVENTS_PER_PAGE = 1_000  # in memory at a time

_DELIVERIES = """SELECT webhook, position, lane, stream, version, type FROM webhooks.deliveries
WHERE position > %s AND position <= %s"""
# Stream and version identify the event that is sent.
_DELIVERY_COLUMNS = ("lane", "stream", "version", "type")
# Whose deliveries may be gone: removed webhooks, erased owners, those with more than may wait.
_COMPLETE_WEBHOOKS = """SELECT e.id, CASE WHEN coalesce(h.missed, 0) > 0 THEN h.missed_after END
FROM webhooks.endpoints e LEFT JOIN webhooks.health h ON h.webhook = e.id
WHERE NOT EXISTS (SELECT FROM audit.erasures r WHERE r.owner = e.owner)"""


async def check_deliveries(
    connection: Connection,
    codec: Codec,
    findings: Findings,
    changes: Sequence[RecordedEvent],
    *,
    through: int,
    retention: float,
) -> int:
    """Check the deliveries of events up to this position, and return from which one on.

    `changes` are all events of webhooks. Raises psycopg.Error, Unavailable, UnreadableEvent.
    """
    # Half of it: an event is recorded before its delivery is queued, and clocks differ.
    since = datetime.now(UTC) - timedelta(seconds=retention / 2)
    start = position = await last_position_at(connection, since, codec)
    store, roster = PostgresDispatcherStore(connection, codec), WebhookIndex()
    for earlier in sorted(changes, key=lambda one: one.position):
        if earlier.position <= start:
            roster.apply(earlier)
    kept = dict(await fetch_rows(connection, _COMPLETE_WEBHOOKS))
    while position < through:
        found = await read_log(connection, position, EVENTS_PER_PAGE, roster.topics(), codec)
        found = [recorded for recorded in found if recorded.position <= through]
        events, change = split_at_webhook_change(found)
        expected = await plan_deliveries(store, roster, events)
        if change is not None:
            end = change.position
            expected += [asked] if (asked := plan_test_delivery(change)) else []
            roster.apply(change)
        else:
            end = found[-1].position if len(found) == EVENTS_PER_PAGE else through
        await _compare_deliveries(connection, findings, kept, expected, position, end)
        position = end
    return start


async def _compare_deliveries(
    connection: Connection,
    findings: Findings,
    kept: dict[UUID, int | None],
    expected: Sequence[PlannedDelivery],
    after: int,
    through: int,
) -> None:
    rows = await fetch_rows(connection, _DELIVERIES, after, through)
    there = {(webhook, position): columns for webhook, position, *columns in rows}
    wanted = {(telling.webhook, telling.position): telling for telling in expected}
    for key in sorted(there.keys() & wanted.keys()):
        for name, found in zip(_DELIVERY_COLUMNS, there[key], strict=True):
            if found != (logged := getattr(wanted[key], name)):
                detail = f"of position {key[1]}: {difference(name, found, logged)}"
                findings.add("delivery_altered", "webhooks.deliveries", key[0], detail)
    for webhook, position in sorted(there.keys() - wanted.keys()):
        detail = f"the event at position {position} is not to be delivered to it"
        findings.add("delivery_altered", "webhooks.deliveries", webhook, detail)
    for webhook, position in sorted(wanted.keys() - there.keys()):
        missed_after = kept.get(webhook)
        if webhook in kept and (missed_after is None or position <= missed_after):
            detail = f"the delivery of position {position} is missing, or was passed over"
            findings.add("delivery_altered", "webhooks.deliveries", webhook, detail)
