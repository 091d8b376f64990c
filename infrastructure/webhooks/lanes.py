"""Lanes of deliveries: the first that waits in each, and what one that was tried leaves behind."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from application.ports.deliveries import (
    Delivered,
    Delivery,
    DeliveryState,
    Due,
    GivenUp,
    Try,
    TryAgain,
    Verdict,
)
from infrastructure.postgres.pool import Connection
from infrastructure.webhooks.rows import DELIVERY, delivery_of, jsonb, webhook_of

_HEADS = f"""
SELECT {DELIVERY}, e.webhook,
  (SELECT coalesce(jsonb_object_agg(s.id, s.secret), '{{}}') FROM webhooks.secrets s
   WHERE s.webhook = e.id)
FROM unnest(%s::uuid[], %s::uuid[]) AS taken (webhook, lane)
JOIN webhooks.endpoints e ON e.id = taken.webhook AND (e.enabled OR taken.lane = e.id)
CROSS JOIN LATERAL (
  SELECT * FROM webhooks.deliveries p
  WHERE p.webhook = taken.webhook AND p.lane = taken.lane AND p.state = 'pending'
  ORDER BY p.position LIMIT 1) d"""  # noqa: S608

_RECORD = """UPDATE webhooks.deliveries SET state = %s, attempts = attempts + 1, failures = %s,
  next_at = %s, ended_at = %s, last = %s
WHERE webhook = %s AND position = %s"""

_WELL = """UPDATE webhooks.health SET failing_since = NULL
WHERE webhook = %s AND failing_since IS NOT NULL"""

_ILL = """INSERT INTO webhooks.health AS h (webhook, failing_since, last_error) VALUES (%s, %s, %s)
ON CONFLICT (webhook) DO UPDATE SET last_error = EXCLUDED.last_error,
  failing_since = coalesce(h.failing_since, EXCLUDED.failing_since)
RETURNING failing_since"""

FREE = "UPDATE webhooks.lanes SET lease = NULL, due_at = %s WHERE webhook = %s AND lane = %s"
_DROP = "DELETE FROM webhooks.lanes WHERE webhook = %s AND lane = %s"
_NEXT = """SELECT next_at FROM webhooks.deliveries
WHERE webhook = %s AND lane = %s AND state = 'pending' ORDER BY position LIMIT 1"""


async def heads(connection: Connection, lease: UUID, lanes: Sequence[tuple[Any, ...]]) -> list[Due]:
    """The first delivery of each of these lanes that has one and may be used."""
    webhooks, names = [lane[0] for lane in lanes], [lane[1] for lane in lanes]
    cursor = await connection.execute(_HEADS, (webhooks, names), prepare=True)
    return [
        Due(
            lease=lease,
            delivery=delivery_of(row),
            webhook=webhook_of(row[-2]),
            secrets={UUID(id): text for id, text in row[-1].items()},
        )
        for row in await cursor.fetchall()
    ]


async def record(
    connection: Connection, delivery: Delivery, tried: Try, verdict: Verdict, at: datetime
) -> None:
    failures = delivery.failures + 1
    match verdict:
        case Delivered():
            values: tuple[object, ...] = (DeliveryState.DELIVERED, 0, None, at)
        case GivenUp():
            values = (DeliveryState.FAILED, failures, None, at)
        case TryAgain(at=next_at):
            values = (DeliveryState.PENDING, failures, next_at, None)
    subject = (jsonb(tried), delivery.webhook, delivery.position)
    await connection.execute(_RECORD, (*values, *subject), prepare=True)


async def note_health(
    connection: Connection, delivery: Delivery, tried: Try, verdict: Verdict, at: datetime
) -> datetime | None:
    """Since when the webhook has done nothing but fail; a failed test says nothing of that."""
    if isinstance(verdict, Delivered):
        await connection.execute(_WELL, (delivery.webhook,), prepare=True)
        return None
    if delivery.is_test:
        return None
    cursor = await connection.execute(_ILL, (delivery.webhook, at, tried.error), prepare=True)
    row = await cursor.fetchone()
    return row[0] if row else None


async def release(connection: Connection, webhook: UUID, lane: UUID, at: datetime) -> None:
    """The lane is gone if nothing is left in it; else its next turn comes after those of others.

    The caller holds its row: what is queued meanwhile makes it anew.
    """
    cursor = await connection.execute(_NEXT, (webhook, lane), prepare=True)
    row = await cursor.fetchone()
    if row is None:
        await connection.execute(_DROP, (webhook, lane), prepare=True)
    else:
        await connection.execute(FREE, (max(at, row[0] or at), webhook, lane), prepare=True)
