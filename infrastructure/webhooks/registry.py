"""The port `Webhooks` on PostgreSQL: rows of the dispatcher, and signing secrets."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec

from application.errors import NotFound
from application.ports.read_model import BadCursor, Page
from application.ports.webhooks import Delivery, DeliveryState, GeneratedSecret, WebhookHealth
from domain.webhook.aggregate import Webhook
from infrastructure.outbound import new_secret
from infrastructure.postgres.pool import Pool
from infrastructure.postgres.tracked_positions import WEBHOOKS_POSITION
from infrastructure.webhooks.dispatcher import OPEN_LANES
from infrastructure.webhooks.outbox import DELIVERY, delivery_of, webhook_of

_KEEP = "INSERT INTO webhooks.secrets (id, webhook, secret) VALUES (%s, %s, %s)"
_ALL = """SELECT webhook FROM webhooks.endpoints
WHERE (%(owner)s::text IS NULL OR owner = %(owner)s)
AND (%(before)s::uuid IS NULL OR id < %(before)s) ORDER BY id DESC LIMIT %(limit)s"""
_COUNT = "SELECT count(*) FROM webhooks.endpoints WHERE owner = %s"
_NAMED = """SELECT EXISTS (SELECT FROM webhooks.endpoints WHERE owner = %(owner)s
AND (id::text = lower(%(name)s) OR webhook #>> '{subscription,url}' = %(name)s))"""
_STANDINGS = """
SELECT asked.id, h.failing_since, coalesce(h.last_error, ''), coalesce(h.missed, 0), h.missed_after,
  (SELECT count(*) FROM webhooks.deliveries d WHERE d.webhook = asked.id AND d.state = 'pending'),
  (SELECT count(*) FROM webhooks.deliveries d WHERE d.webhook = asked.id AND d.state = 'failed')
FROM unnest(%s::uuid[]) AS asked (id) LEFT JOIN webhooks.health h ON h.webhook = asked.id"""
_DELIVERIES = f"""SELECT {DELIVERY} FROM webhooks.deliveries d
WHERE d.webhook = %(webhook)s AND (%(state)s::text IS NULL OR d.state = %(state)s)
AND (%(before)s::bigint IS NULL OR d.position < %(before)s)
ORDER BY d.position DESC LIMIT %(limit)s"""  # noqa: S608
_DELIVERY = f"""SELECT {DELIVERY} FROM webhooks.deliveries d
WHERE d.webhook = %s AND d.position = %s"""  # noqa: S608

_AGAIN = "state = 'pending', failures = 0, next_at = NULL, ended_at = NULL"
_REDELIVER = f"""UPDATE webhooks.deliveries SET {_AGAIN}
WHERE webhook = %s AND position = %s AND state <> 'pending' RETURNING lane"""  # noqa: S608
_REDELIVER_FAILED = f"""UPDATE webhooks.deliveries SET {_AGAIN}
WHERE webhook = %s AND state = 'failed' AND ended_at >= %s RETURNING lane"""  # noqa: S608
_HURRY = """UPDATE webhooks.lanes SET due_at = least(due_at, %s)
WHERE webhook = %s AND lane = ANY(%s) AND lease IS NULL"""


class PostgresWebhooks:
    """The port `Webhooks`: rows as of the dispatcher. Every method raises Unavailable."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def make_secret(self, webhook: UUID) -> GeneratedSecret:
        secret = GeneratedSecret(uuid4(), new_secret())
        async with self._pool.connection() as connection:
            await connection.execute(_KEEP, (secret.id, webhook, secret.text))
        return secret

    async def position(self) -> int:
        async with self._pool.connection() as connection:
            return await WEBHOOKS_POSITION.load(connection)

    async def all(
        self, *, owner: str | None, cursor: str | None = None, limit: int = 50
    ) -> Page[Webhook]:
        values = {"owner": owner, "before": _id_in(cursor), "limit": limit + 1}
        position = await self.position()  # before the rows: they are no older
        found = [webhook_of(row[0]) for row in await self._rows(_ALL, values)]
        items, more = found[:limit], len(found) > limit
        return Page(items, str(items[-1].id) if more else None, position)

    async def count(self, owner: str) -> int:
        return int((await self._rows(_COUNT, (owner,)))[0][0])

    async def named(self, owner: str, name: str) -> bool:
        return bool((await self._rows(_NAMED, {"owner": owner, "name": name}))[0][0])

    async def load_health(self, ids: Sequence[UUID]) -> dict[UUID, WebhookHealth]:
        rows = await self._rows(_STANDINGS, (list(ids),))
        return {
            id: WebhookHealth(
                pending=pending,
                failed=failed,
                failing_since=failing_since,
                last_error=last_error if failing_since else "",
                missed=missed,
                missed_after=missed_after,
            )
            for id, failing_since, last_error, missed, missed_after, pending, failed in rows
        }

    async def deliveries(
        self,
        webhook: UUID,
        *,
        state: DeliveryState | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Sequence[Delivery]:
        values = {"webhook": webhook, "state": state, "before": before, "limit": limit}
        return [delivery_of(row) for row in await self._rows(_DELIVERIES, values)]

    async def delivery(self, webhook: UUID, position: int) -> Delivery:
        rows = await self._rows(_DELIVERY, (webhook, position))
        if not rows:
            raise NotFound(f"no delivery of position {position}")
        return delivery_of(rows[0])

    async def redeliver(self, webhook: UUID, position: int, *, at: datetime) -> Delivery:
        await self._queue_again(_REDELIVER, (webhook, position), webhook, at)
        return await self.delivery(webhook, position)

    async def redeliver_failed(self, webhook: UUID, since: datetime, *, at: datetime) -> int:
        return await self._queue_again(_REDELIVER_FAILED, (webhook, since), webhook, at)

    async def _queue_again(
        self, query: str, values: tuple[object, ...], webhook: UUID, at: datetime
    ) -> int:
        async with self._pool.connection() as connection, connection.transaction():
            cursor = await connection.execute(query.encode(), values)
            lanes = [row[0] for row in await cursor.fetchall()]
            if lanes:
                await connection.execute(OPEN_LANES, (at, [webhook] * len(lanes), lanes))
                await connection.execute(_HURRY, (at, webhook, lanes))
            return len(lanes)

    async def _rows(self, query: str, values: Any = ()) -> list[tuple[Any, ...]]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(query.encode(), values)).fetchall()


def _id_in(cursor: str | None) -> UUID | None:
    try:
        return None if cursor is None else msgspec.convert(cursor, UUID)
    except msgspec.ValidationError:
        raise BadCursor(cursor) from None
