"""The port `Outbox` on PostgreSQL: leases on lanes, so that any number of processes deliver."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import uuid4

from application.ports.deliveries import After, Due, Try, TryAgain, Verdict
from infrastructure.postgres.pool import Pool
from infrastructure.webhooks.lanes import FREE, heads, note_health, record, release
from infrastructure.webhooks.rows import reached

PER_WEBHOOK = 4  # lanes of a webhook that are told at once; a few more by several processes
WHILE_FAILING = 1  # likewise, of one that has done nothing but fail for a while
FAILING_AFTER = 5.0  # seconds of nothing but failures: a single one means little
MARGIN = 45.0  # seconds a lease lasts beyond the time that a request may take

# Webhook by webhook, the one first whose turn came first: a lane is passed over that another
# process takes at this moment. Disabled ones get their tests, and nothing else.
_CLAIM = f"""
WITH waiting AS (
  SELECT e.id, e.enabled, first.due_at,
    CASE WHEN h.failing_since < %(failing)s THEN {WHILE_FAILING} ELSE {PER_WEBHOOK} END
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
    """A lease lasts for `timeout` seconds, which a request may take, and a margin."""

    def __init__(self, pool: Pool, timeout: float) -> None:
        self._pool = pool
        self._lease = timedelta(seconds=timeout + MARGIN)

    async def claim(self, most: int, *, at: datetime) -> Sequence[Due]:
        lease = uuid4()
        values = {
            "at": at,
            "failing": at - timedelta(seconds=FAILING_AFTER),
            "until": at + self._lease,
            "lease": lease,
            "most": most,
        }
        async with reached(self._pool) as connection, connection.transaction():
            cursor = await connection.execute(_CLAIM, values, prepare=True)
            taken = await cursor.fetchall()
            if not taken:
                return []
            first = await heads(connection, lease, taken)
            found = {(due.delivery.webhook, due.delivery.lane) for due in first}
            for webhook, lane in taken:
                if (webhook, lane) not in found:
                    await release(connection, webhook, lane, at)
            return first

    async def settle(
        self, due: Due, tried: Try, verdict: Verdict, *, at: datetime, go_on: bool
    ) -> After | None:
        delivery = due.delivery
        webhook, lane = delivery.webhook, delivery.lane
        async with reached(self._pool) as connection, connection.transaction():
            # By itself, before anything is looked at: whoever queues more waits here, and is seen.
            held = await connection.execute(_HOLD, (webhook, lane, due.lease), prepare=True)
            if await held.fetchone() is None:
                return None
            await record(connection, delivery, tried, verdict, at)
            failing_since = await note_health(connection, delivery, tried, verdict, at)
            go_on &= not isinstance(verdict, TryAgain)
            ahead = await heads(connection, due.lease, [(webhook, lane)]) if go_on else []
            if not ahead or (ahead[0].delivery.next_at or at) > at:
                await release(connection, webhook, lane, at)
                return After(None, failing_since)
            await connection.execute(_KEEP, (at + self._lease, webhook, lane))
            return After(ahead[0], failing_since)

    async def give_back(self, dues: Sequence[Due], *, at: datetime) -> None:
        async with reached(self._pool) as connection:
            for due in dues:
                webhook, lane = due.delivery.webhook, due.delivery.lane
                async with connection.transaction():
                    held = await connection.execute(_HOLD, (webhook, lane, due.lease))
                    if await held.fetchone() is not None:
                        await connection.execute(FREE, (at, webhook, lane))
