"""What the follower writes: webhooks as the log has them, and deliveries in their lanes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from application.append import RecordedEvent
from application.webhooks.following import Telling
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WebhookChanged, WebhookEnabled
from infrastructure.postgres.pool import Connection
from infrastructure.webhooks.rows import jsonb

_SAVE = """INSERT INTO webhooks.endpoints (id, owner, enabled, webhook) VALUES (%s, %s, %s, %s)
ON CONFLICT (id) DO UPDATE SET enabled = EXCLUDED.enabled, webhook = EXCLUDED.webhook"""

_REMOVE = (
    "DELETE FROM webhooks.endpoints WHERE id = %s",
    "DELETE FROM webhooks.lanes WHERE webhook = %s",
    "DELETE FROM webhooks.deliveries WHERE webhook = %s",
    "DELETE FROM webhooks.health WHERE webhook = %s",
    "DELETE FROM webhooks.secrets WHERE webhook = %s",
)

_HOPE = "UPDATE webhooks.health SET failing_since = NULL WHERE webhook = %s"
_HURRY = """UPDATE webhooks.deliveries SET next_at = NULL
WHERE webhook = %s AND state = 'pending' AND next_at IS NOT NULL"""
_WAKE = "UPDATE webhooks.lanes SET due_at = %s WHERE webhook = %s AND lease IS NULL"

_PUT = """INSERT INTO webhooks.deliveries
  (webhook, position, lane, stream, version, type, queued_at)
SELECT *, %s
FROM unnest(%s::uuid[], %s::bigint[], %s::uuid[], %s::uuid[], %s::bigint[], %s::text[])"""

# The update waits for whoever holds the lane at this moment: should they find it empty and
# remove it, it is made anew. In order, so that two who queue do not wait for each other.
OPEN_LANES = """INSERT INTO webhooks.lanes AS l (webhook, lane, due_at)
SELECT DISTINCT webhook, lane, %s::timestamptz
FROM unnest(%s::uuid[], %s::uuid[]) AS w (webhook, lane) ORDER BY 1, 2
ON CONFLICT (webhook, lane) DO UPDATE SET due_at = l.due_at"""

_WAITING = """SELECT count(*) FROM (SELECT FROM webhooks.deliveries
  WHERE webhook = %s AND state = 'pending' LIMIT %s) w"""

_MISSED = """INSERT INTO webhooks.health AS h (webhook, missed, missed_after) VALUES (%s, %s, %s)
ON CONFLICT (webhook) DO UPDATE SET missed = h.missed + EXCLUDED.missed,
  missed_after = coalesce(h.missed_after, EXCLUDED.missed_after)"""


async def save(
    connection: Connection, webhook: Webhook, change: RecordedEvent, at: datetime
) -> None:
    """The webhook after this change; whatever was kept for one that was removed is gone."""
    if webhook.removed:
        for statement in _REMOVE:
            await connection.execute(statement, (webhook.id,))
        return
    values = (webhook.id, webhook.owner, webhook.enabled, jsonb(webhook))
    await connection.execute(_SAVE, values)
    if isinstance(change.event, WebhookEnabled):
        await connection.execute(_HOPE, (webhook.id,))
    if isinstance(change.event, WebhookEnabled | WebhookChanged):
        # Somebody did something about it: there is no reason to wait for the next try.
        await connection.execute(_HURRY, (webhook.id,))
        await connection.execute(_WAKE, (at, webhook.id))


async def put(connection: Connection, tellings: Sequence[Telling], at: datetime) -> None:
    """Deliveries that wait from now on, and the lanes they wait in."""
    if not tellings:
        return
    webhooks = [telling.webhook for telling in tellings]
    lanes = [telling.lane for telling in tellings]
    await connection.execute(
        _PUT,
        (
            at,
            webhooks,
            [telling.position for telling in tellings],
            lanes,
            [telling.stream for telling in tellings],
            [telling.version for telling in tellings],
            [telling.type for telling in tellings],
        ),
    )
    await connection.execute(OPEN_LANES, (at, webhooks, lanes))


async def room(connection: Connection, webhook: UUID, most: int) -> int:
    """How many more deliveries may wait for this webhook."""
    row = await (await connection.execute(_WAITING, (webhook, most))).fetchone()
    return most - int(row[0]) if row else most


async def note_missed(connection: Connection, webhook: UUID, count: int, after: int) -> None:
    await connection.execute(_MISSED, (webhook, count, after))
