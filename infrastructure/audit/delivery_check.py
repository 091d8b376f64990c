"""Verification of the webhook outbox against the deliveries that follow from the log.

An inserted delivery would send one owner's event to another owner's receiver; a deleted delivery,
or one that the follower's position was moved past, would never be sent. Deliveries are removed
after the retention time, so only events recorded since then are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from application.append import RecordedEvent
from application.webhooks.notifications import (
    PlannedDelivery,
    WebhookIndex,
    plan_test_delivery,
    split_at_webhook_change,
)
from infrastructure.audit.verifier import Findings, difference
from infrastructure.event_store.codec import Codec
from infrastructure.event_store.reader import last_position_at, read_log
from infrastructure.postgres.connection import Connection, fetch_rows
from infrastructure.webhooks.dispatcher import plan_deliveries

EVENTS_PER_PAGE = 1_000  # in memory at a time

_ROWS = """SELECT webhook, position, lane, stream, version, type FROM webhooks.deliveries
WHERE position > %s AND position <= %s"""
_COLUMNS = ("lane", "stream", "version", "type")  # stream and version say which event is sent
# Whose deliveries may be gone: removed webhooks, erased owners, those with more than may wait.
_KEPT = """SELECT e.id, CASE WHEN coalesce(h.missed, 0) > 0 THEN h.missed_after END
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
    roster = WebhookIndex()
    for earlier in sorted(changes, key=lambda one: one.position):
        if earlier.position <= start:
            roster.apply(earlier)
    kept = dict(await fetch_rows(connection, _KEPT))
    while position < through:
        found = await read_log(connection, position, EVENTS_PER_PAGE, roster.topics(), codec)
        found = [recorded for recorded in found if recorded.position <= through]
        events, change = split_at_webhook_change(found)
        expected = await plan_deliveries(connection, roster, events, codec)
        if change is not None:
            end = change.position
            expected += [asked] if (asked := plan_test_delivery(change)) else []
            roster.apply(change)
        else:
            end = found[-1].position if len(found) == EVENTS_PER_PAGE else through
        await _compare(connection, findings, kept, expected, position, end)
        position = end
    return start


async def _compare(
    connection: Connection,
    findings: Findings,
    kept: dict[UUID, int | None],
    expected: Sequence[PlannedDelivery],
    after: int,
    through: int,
) -> None:
    rows = await fetch_rows(connection, _ROWS, after, through)
    there = {(webhook, position): columns for webhook, position, *columns in rows}
    wanted = {(telling.webhook, telling.position): telling for telling in expected}
    for key in sorted(there.keys() & wanted.keys()):
        for name, found in zip(_COLUMNS, there[key], strict=True):
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
