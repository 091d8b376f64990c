"""The port `Outbox` on PostgreSQL: leases on lanes, so that any number of processes deliver."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import msgspec
from psycopg.types.json import Jsonb

from application.ports.webhooks import (
    DeadLettered,
    Delivery,
    DeliveryAttempt,
    DeliveryState,
    DeliverySucceeded,
    LeasedDelivery,
    NextInLane,
    RetryScheduled,
    Verdict,
)
from domain.webhook.aggregate import Webhook
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.pool import Pool

# Rows of the webhooks' tables, and what they stand for.

DELIVERY = (
    "d.webhook, d.position, d.lane, d.stream, d.version, d.type, d.state, d.attempts,"
    " d.failures, d.queued_at, d.next_at, d.ended_at, d.last"
)


def webhook_of(value: Any) -> Webhook:
    return msgspec.convert(value, Webhook)


def jsonb(value: msgspec.Struct | None) -> Jsonb | None:
    return None if value is None else Jsonb(msgspec.to_builtins(value))


def delivery_of(row: tuple[Any, ...]) -> Delivery:
    """Return the delivery in the columns DELIVERY; further columns are ignored."""
    webhook, position, lane, stream, version, type, state, attempts, failures, *rest = row
    queued_at, next_at, ended_at, last, *_ = rest
    return Delivery(
        webhook=webhook,
        position=position,
        lane=lane,
        stream=stream,
        version=version,
        type=type,
        state=DeliveryState(state),
        attempts=attempts,
        failures=failures,
        queued_at=queued_at,
        next_at=next_at,
        ended_at=ended_at,
        last=None if last is None else msgspec.convert(last, DeliveryAttempt),
    )


# Lanes of deliveries: the first that waits in each, and what one that was tried leaves behind.

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


async def claimable_deliveries(
    connection: Connection, lease: UUID, lanes: Sequence[tuple[Any, ...]]
) -> list[LeasedDelivery]:
    """Return the first delivery of each of these lanes, if it may be made."""
    webhooks, names = [lane[0] for lane in lanes], [lane[1] for lane in lanes]
    cursor = await connection.execute(_HEADS, (webhooks, names), prepare=True)
    return [
        LeasedDelivery(
            lease=lease,
            delivery=delivery_of(row),
            webhook=webhook_of(row[-2]),
            secrets={UUID(id): text for id, text in row[-1].items()},
        )
        for row in await cursor.fetchall()
    ]


async def record(
    connection: Connection,
    delivery: Delivery,
    tried: DeliveryAttempt,
    verdict: Verdict,
    at: datetime,
) -> None:
    failures = delivery.failures + 1
    match verdict:
        case DeliverySucceeded():
            values: tuple[object, ...] = (DeliveryState.DELIVERED, 0, None, at)
        case DeadLettered():
            values = (DeliveryState.FAILED, failures, None, at)
        case RetryScheduled(at=next_at):
            values = (DeliveryState.PENDING, failures, next_at, None)
    subject = (jsonb(tried), delivery.webhook, delivery.position)
    await connection.execute(_RECORD, (*values, *subject), prepare=True)


async def update_health(
    connection: Connection,
    delivery: Delivery,
    tried: DeliveryAttempt,
    verdict: Verdict,
    at: datetime,
) -> datetime | None:
    """Return the time since which the webhook has only failed; test deliveries do not count."""
    if isinstance(verdict, DeliverySucceeded):
        await connection.execute(_WELL, (delivery.webhook,), prepare=True)
        return None
    if delivery.is_test:
        return None
    cursor = await connection.execute(_ILL, (delivery.webhook, at, tried.error), prepare=True)
    row = await cursor.fetchone()
    return row[0] if row else None


async def release(connection: Connection, webhook: UUID, lane: UUID, at: datetime) -> None:
    """Delete an empty lane; otherwise let it wait behind the other lanes.

    The caller has locked its row: a delivery queued meanwhile inserts it again.
    """
    cursor = await connection.execute(_NEXT, (webhook, lane), prepare=True)
    row = await cursor.fetchone()
    if row is None:
        await connection.execute(_DROP, (webhook, lane), prepare=True)
    else:
        await connection.execute(FREE, (max(at, row[0] or at), webhook, lane), prepare=True)


# Deletes what need not be kept any longer: deliveries that were made, secrets that do not sign.

PRUNED_PER_STEP = 5_000  # rows deleted at once

_OLD = f"""DELETE FROM webhooks.deliveries WHERE (webhook, position) IN (
  SELECT webhook, position FROM webhooks.deliveries
  WHERE state <> 'pending' AND ended_at < %s LIMIT {PRUNED_PER_STEP})"""  # noqa: S608

# One that no webhook names was made for a command that did not come to its end; a day is ample.
_UNUSED = """DELETE FROM webhooks.secrets s WHERE made_at < now() - interval '1 day'
AND NOT EXISTS (
  SELECT FROM webhooks.endpoints e, jsonb_array_elements(e.webhook -> 'secrets') used
  WHERE e.id = s.webhook AND used ->> 'id' = s.id::text
  AND (used ->> 'until' IS NULL OR (used ->> 'until')::timestamptz > now()))"""


MAX_LANES_PER_WEBHOOK = (
    4  # lanes of a webhook delivered concurrently; a few more by several processes
)
MAX_LANES_WHILE_FAILING = 1  # likewise, of one that has done nothing but fail for a while
FAILING_AFTER_SECONDS = 5.0  # seconds of nothing but failures: a single one means little
LEASE_MARGIN = 45.0  # seconds a lease lasts beyond the time that a request may take

# Webhook by webhook, the one first whose turn came first: a lane is passed over that another
# process takes at this moment. Disabled ones get their tests, and nothing else.
_CLAIM = f"""
WITH waiting AS (
  SELECT e.id, e.enabled, first.due_at,
    CASE WHEN h.failing_since < %(failing)s
      THEN {MAX_LANES_WHILE_FAILING} ELSE {MAX_LANES_PER_WEBHOOK} END
      - (SELECT count(*) FROM webhooks.lanes l
         WHERE l.webhook = e.id AND l.lease IS NOT NULL AND l.due_at > %(at)s) AS room
  FROM webhooks.endpoints e
  CROSS JOIN LATERAL (
    SELECT l.due_at FROM webhooks.lanes l
    WHERE l.webhook = e.id AND l.due_at <= %(at)s AND (e.enabled OR l.lane = e.id)
    ORDER BY l.due_at LIMIT 1) first
  LEFT JOIN webhooks.health h ON h.webhook = e.id),
picked AS (
  SELECT lane.webhook, lane.lane
  FROM (SELECT * FROM waiting WHERE room > 0 ORDER BY due_at LIMIT %(most)s) w
  CROSS JOIN LATERAL (
    SELECT l.webhook, l.lane FROM webhooks.lanes l
    WHERE l.webhook = w.id AND l.due_at <= %(at)s AND (w.enabled OR l.lane = w.id)
    ORDER BY l.due_at LIMIT w.room FOR UPDATE SKIP LOCKED) lane
  LIMIT %(most)s)
UPDATE webhooks.lanes l SET lease = %(lease)s, due_at = %(until)s
FROM picked WHERE l.webhook = picked.webhook AND l.lane = picked.lane
RETURNING l.webhook, l.lane"""  # noqa: S608

_HOLD = """SELECT 1 FROM webhooks.lanes
WHERE webhook = %s AND lane = %s AND lease = %s FOR UPDATE"""

_KEEP = "UPDATE webhooks.lanes SET due_at = %s WHERE webhook = %s AND lane = %s"


class PostgresOutbox:
    """The outbox. A lease lasts `timeout` seconds, the limit of a request, and a margin."""

    def __init__(self, pool: Pool, timeout: float) -> None:
        self._pool = pool
        self._lease = timedelta(seconds=timeout + LEASE_MARGIN)

    async def claim(self, most: int, *, at: datetime) -> Sequence[LeasedDelivery]:
        lease = uuid4()
        values = {
            "at": at,
            "failing": at - timedelta(seconds=FAILING_AFTER_SECONDS),
            "until": at + self._lease,
            "lease": lease,
            "most": most,
        }
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(_CLAIM, values, prepare=True)
            taken = await cursor.fetchall()
            if not taken:
                return []
            first = await claimable_deliveries(connection, lease, taken)
            found = {(due.delivery.webhook, due.delivery.lane) for due in first}
            for webhook, lane in taken:
                if (webhook, lane) not in found:
                    await release(connection, webhook, lane, at)
            return first

    async def complete(
        self,
        due: LeasedDelivery,
        tried: DeliveryAttempt,
        verdict: Verdict,
        *,
        at: datetime,
        keep_lane: bool,
    ) -> NextInLane | None:
        delivery = due.delivery
        webhook, lane = delivery.webhook, delivery.lane
        async with self._pool.connection() as connection, connection.transaction():
            # A statement of its own, before any read: a transaction that queues more waits for this
            # lock, or its rows are seen below.
            held = await connection.execute(_HOLD, (webhook, lane, due.lease), prepare=True)
            if await held.fetchone() is None:
                return None
            await record(connection, delivery, tried, verdict, at)
            failing_since = await update_health(connection, delivery, tried, verdict, at)
            keep_lane &= not isinstance(verdict, RetryScheduled)
            ahead = (
                await claimable_deliveries(connection, due.lease, [(webhook, lane)])
                if keep_lane
                else []
            )
            if not ahead or (ahead[0].delivery.next_at or at) > at:
                await release(connection, webhook, lane, at)
                return NextInLane(None, failing_since)
            await connection.execute(_KEEP, (at + self._lease, webhook, lane))
            return NextInLane(ahead[0], failing_since)

    async def delete_expired(self, before: datetime) -> int:
        count = 0
        async with self._pool.connection() as connection:
            while (deleted := (await connection.execute(_OLD, (before,))).rowcount) > 0:
                count += deleted
                if deleted < PRUNED_PER_STEP:
                    break
            await connection.execute(_UNUSED)
        return count

    async def release_leases(self, dues: Sequence[LeasedDelivery], *, at: datetime) -> None:
        async with self._pool.connection() as connection:
            for due in dues:
                webhook, lane = due.delivery.webhook, due.delivery.lane
                async with connection.transaction():
                    held = await connection.execute(_HOLD, (webhook, lane, due.lease))
                    if await held.fetchone() is not None:
                        await connection.execute(FREE, (at, webhook, lane))
