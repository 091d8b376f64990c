"""Webhooks in memory: the ports `DispatcherStore`, `Outbox` and, in part, `Webhooks`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from uuid import UUID

from msgspec.structs import replace

from application.append import RecordedEvent
from application.errors import NotFound
from application.ports.webhooks import (
    DeadLettered,
    Delivery,
    DeliveryAttempt,
    DeliveryState,
    DeliverySucceeded,
    DispatchTransaction,
    GeneratedSecret,
    LeasedDelivery,
    NextInLane,
    PlannedDelivery,
    RetryScheduled,
    StreamBatch,
    Verdict,
    WebhookHealth,
)
from domain.batch.events import BatchRenamed, BatchStarted
from domain.upload.events import UploadRegistered, UploadRejected
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WebhookChanged, WebhookEnabled
from infrastructure.database_errors import LeadershipLost
from infrastructure.postgres.tracked_positions import WEBHOOKS_POSITION
from infrastructure.webhooks.outbox import (
    FAILING_AFTER_SECONDS,
    LEASE_MARGIN,
    MAX_LANES_PER_WEBHOOK,
    MAX_LANES_WHILE_FAILING,
)
from tests.memory.database import Client, Health, Lane, MemoryDatabase, SessionClient
from tests.memory.event_log import decoded, head_of, rows_beyond

NAME = WEBHOOKS_POSITION.name


class MemoryDispatcherStore:
    """The port `DispatcherStore` in the session of the leader."""

    def __init__(self, client: SessionClient) -> None:
        self._client = client
        self._database = client.database

    async def position(self) -> int:
        return await self._client.call("webhooks", lambda: self._database.positions.get(NAME, 0))

    async def webhooks(self) -> Sequence[Webhook]:
        return await self._client.call(
            "endpoints", lambda: [hook for _, hook in sorted(self._database.endpoints.items())]
        )

    async def head(self) -> int:
        return await self._client.call("head", lambda: head_of(self._database))

    async def read(
        self, after: int, *, limit: int, topics: Sequence[str]
    ) -> Sequence[RecordedEvent]:
        rows = await self._client.call(
            "read", lambda: rows_beyond(self._database, after, limit, topics)
        )
        return [decoded(row) for row in rows]

    async def batches_of(
        self, streams: Collection[UUID], *, with_renames: bool
    ) -> Mapping[UUID, StreamBatch]:
        return await self._client.call(
            "batches_of",
            lambda: {
                stream: batch
                for stream in sorted(streams)
                if (batch := self._batch_of(stream, with_renames)) is not None
            },
        )

    @asynccontextmanager
    async def begin(self, position: int, through: int) -> AsyncIterator[DispatchTransaction]:
        client, database = self._client, self._database
        await client.request("begin")
        lock = database.lock(f"position of {NAME}")
        await lock.acquire(client.session)
        try:
            if database.positions.get(NAME, 0) != position:
                raise LeadershipLost(f"the place is not {position} any more")
            transaction = _MemoryDispatch(client)
            yield transaction
            await client.request("commit")
            transaction.commit()
            database.positions[NAME] = through
        finally:
            lock.release(client.session)
        await client.response("commit")

    def _batch_of(self, stream: UUID, with_renames: bool) -> StreamBatch | None:
        streams = self._database.streams
        if not (rows := streams.get(stream)):
            return None
        first = decoded(rows[0]).event
        id = first.batch if isinstance(first, UploadRegistered | UploadRejected) else stream
        batch: StreamBatch | None = None
        for row in streams.get(id, ()) if with_renames else streams.get(id, [])[:1]:
            event = decoded(row).event
            if isinstance(event, BatchStarted):
                batch = StreamBatch(id, event.owner, event.label, event.notify)
            elif isinstance(event, BatchRenamed) and batch is not None:
                batch = batch.with_rename(row.position, event.label)
        return batch


class _MemoryDispatch:
    """Collects the writes of one transaction, which `commit` makes."""

    def __init__(self, client: SessionClient) -> None:
        self._client = client
        self._database = client.database
        self._missed: list[tuple[UUID, int, int]] = []
        self._webhooks: list[tuple[Webhook, RecordedEvent, datetime]] = []
        self._planned: list[tuple[PlannedDelivery, datetime]] = []

    async def queue_capacity(self, webhook: UUID, most: int) -> int:
        deliveries = self._database.deliveries
        return await self._client.call(
            "queue_capacity",
            lambda: (
                most
                - sum(
                    delivery.webhook == webhook and delivery.state is DeliveryState.PENDING
                    for delivery in deliveries.values()
                )
            ),
        )

    async def count_missed(self, webhook: UUID, count: int, after: int) -> None:
        self._missed.append((webhook, count, after))
        await self._client.request("count_missed")

    async def save_webhook(self, webhook: Webhook, change: RecordedEvent, at: datetime) -> None:
        self._webhooks.append((webhook, change, at))
        await self._client.request("save_webhook")

    async def insert_deliveries(self, planned: Sequence[PlannedDelivery], at: datetime) -> None:
        self._planned += [(one, at) for one in planned]
        await self._client.request("insert_deliveries")

    def commit(self) -> None:
        database = self._database
        for webhook, count, after in self._missed:
            health = database.health.setdefault(webhook, Health())
            health.missed += count
            health.missed_after = after if health.missed_after is None else health.missed_after
        for saved, change, at in self._webhooks:
            self._save(saved, change, at)
        for one, at in self._planned:
            database.deliveries[one.webhook, one.position] = Delivery(
                webhook=one.webhook,
                position=one.position,
                lane=one.lane,
                stream=one.stream,
                version=one.version,
                type=one.type,
                queued_at=at,
            )
            database.lanes.setdefault((one.webhook, one.lane), Lane(at))

    def _save(self, webhook: Webhook, change: RecordedEvent, at: datetime) -> None:
        database, id = self._database, webhook.id
        if webhook.removed:
            database.endpoints.pop(id, None)
            database.health.pop(id, None)
            database.lanes = {key: lane for key, lane in database.lanes.items() if key[0] != id}
            database.deliveries = {
                key: delivery for key, delivery in database.deliveries.items() if key[0] != id
            }
            database.secrets = {
                key: secret for key, secret in database.secrets.items() if secret[0] != id
            }
            return
        database.endpoints[id] = webhook
        if isinstance(change.event, WebhookEnabled) and id in database.health:
            database.health[id].failing_since = None
        if isinstance(change.event, WebhookEnabled | WebhookChanged):
            for key, delivery in database.deliveries.items():
                if key[0] == id and delivery.state is DeliveryState.PENDING:
                    database.deliveries[key] = replace(delivery, next_at=None)
            for key, lane in database.lanes.items():
                if key[0] == id and lane.lease is None:
                    lane.due_at = at


class MemoryOutbox:
    """The port `Outbox` in memory."""

    def __init__(self, client: Client, timeout: float) -> None:
        self._client = client
        self._database = client.database
        self._lease = timedelta(seconds=timeout + LEASE_MARGIN)

    async def claim(self, most: int, *, at: datetime) -> Sequence[LeasedDelivery]:
        return await self._client.call("claim", lambda: self._claim(most, at))

    async def complete(
        self,
        due: LeasedDelivery,
        tried: DeliveryAttempt,
        verdict: Verdict,
        *,
        at: datetime,
        keep_lane: bool,
    ) -> NextInLane | None:
        return await self._client.call(
            "complete", lambda: self._complete(due, tried, verdict, at, keep_lane)
        )

    async def delete_expired(self, before: datetime) -> int:
        def delete() -> int:
            deliveries = self._database.deliveries
            old = [
                key
                for key, delivery in deliveries.items()
                if delivery.ended_at is not None and delivery.ended_at < before
            ]
            for key in old:
                del deliveries[key]
            return len(old)

        return await self._client.call("delete_expired", delete)

    async def release_leases(self, dues: Sequence[LeasedDelivery], *, at: datetime) -> None:
        def release() -> None:
            for due in dues:
                lane = self._database.lanes.get((due.delivery.webhook, due.delivery.lane))
                if lane is not None and lane.lease == due.lease:
                    lane.lease, lane.due_at = None, at

        await self._client.call("release_leases", release)

    def _claim(self, most: int, at: datetime) -> list[LeasedDelivery]:
        database, lease = self._database, self._database.new_id()
        failing = at - timedelta(seconds=FAILING_AFTER_SECONDS)
        waiting = []
        for id, webhook in sorted(database.endpoints.items()):
            lanes = sorted(
                (lane.due_at, key)
                for key, lane in database.lanes.items()
                if key[0] == id and lane.due_at <= at and (webhook.enabled or key[1] == id)
            )
            leased = sum(
                lane.lease is not None and lane.due_at > at
                for key, lane in database.lanes.items()
                if key[0] == id
            )
            since = database.health.get(id, Health()).failing_since
            is_failing = since is not None and since < failing
            room = (MAX_LANES_WHILE_FAILING if is_failing else MAX_LANES_PER_WEBHOOK) - leased
            if lanes and room > 0:
                waiting.append((lanes[0][0], id, [key for _, key in lanes[:room]]))
        waiting.sort()
        picked = [key for _, _, keys in waiting[:most] for key in keys][:most]
        claimed = []
        for key in picked:
            database.lanes[key].lease, database.lanes[key].due_at = lease, at + self._lease
            if due := self._first(key, lease):
                claimed.append(due)
            else:
                self._release(key, at)
        return claimed

    def _complete(
        self,
        due: LeasedDelivery,
        tried: DeliveryAttempt,
        verdict: Verdict,
        at: datetime,
        keep_lane: bool,
    ) -> NextInLane | None:
        database, delivery = self._database, due.delivery
        key = (delivery.webhook, delivery.lane)
        lane = database.lanes.get(key)
        if lane is None or lane.lease != due.lease:
            return None
        self._record(delivery, tried, verdict, at)
        failing_since = self._update_health(delivery, tried, verdict, at)
        keep_lane &= not isinstance(verdict, RetryScheduled)
        ahead = self._first(key, due.lease) if keep_lane else None
        if ahead is None or (ahead.delivery.next_at or at) > at:
            self._release(key, at)
            return NextInLane(None, failing_since)
        lane.due_at = at + self._lease
        return NextInLane(ahead, failing_since)

    def _record(
        self, delivery: Delivery, tried: DeliveryAttempt, verdict: Verdict, at: datetime
    ) -> None:
        key = (delivery.webhook, delivery.position)
        stored = self._database.deliveries[key]
        failures = delivery.failures + 1
        changed = replace(stored, attempts=stored.attempts + 1, last=tried, next_at=None)
        match verdict:
            case DeliverySucceeded():
                changed = replace(changed, state=DeliveryState.DELIVERED, failures=0, ended_at=at)
            case DeadLettered():
                changed = replace(
                    changed, state=DeliveryState.FAILED, failures=failures, ended_at=at
                )
            case RetryScheduled(at=next_at):
                changed = replace(
                    changed, state=DeliveryState.PENDING, failures=failures, next_at=next_at
                )
        self._database.deliveries[key] = changed

    def _update_health(
        self, delivery: Delivery, tried: DeliveryAttempt, verdict: Verdict, at: datetime
    ) -> datetime | None:
        known = self._database.health
        if isinstance(verdict, DeliverySucceeded):
            if delivery.webhook in known:
                known[delivery.webhook].failing_since = None
            return None
        if delivery.is_test:
            return None
        health = known.setdefault(delivery.webhook, Health())
        health.last_error = tried.error
        health.failing_since = health.failing_since or at
        return health.failing_since

    def _pending(self, key: tuple[UUID, UUID]) -> list[Delivery]:
        found = [
            delivery
            for delivery in self._database.deliveries.values()
            if (delivery.webhook, delivery.lane) == key and delivery.state is DeliveryState.PENDING
        ]
        return sorted(found, key=lambda delivery: delivery.position)

    def _first(self, key: tuple[UUID, UUID], lease: UUID) -> LeasedDelivery | None:
        webhook = self._database.endpoints.get(key[0])
        pending = self._pending(key)
        if webhook is None or not pending or not (webhook.enabled or key[0] == key[1]):
            return None
        secrets = {
            id: text for id, (of, text, _) in self._database.secrets.items() if of == webhook.id
        }
        return LeasedDelivery(lease=lease, delivery=pending[0], webhook=webhook, secrets=secrets)

    def _release(self, key: tuple[UUID, UUID], at: datetime) -> None:
        if pending := self._pending(key):
            lane = self._database.lanes[key]
            lane.lease, lane.due_at = None, max(at, pending[0].next_at or at)
        else:
            del self._database.lanes[key]


class MemoryWebhooks:
    """The port `Webhooks` in memory, as far as the simulation uses it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._database = client.database

    async def make_secret(self, webhook: UUID) -> GeneratedSecret:
        database = self._database

        def make() -> GeneratedSecret:
            secret = GeneratedSecret(database.new_id(), "whsec_c2VjcmV0")
            database.secrets[secret.id] = (webhook, secret.text, database.now())
            return secret

        return await self._client.call("make_secret", make)

    async def delivery(self, webhook: UUID, position: int) -> Delivery:
        found = await self._client.call(
            "delivery", lambda: self._database.deliveries.get((webhook, position))
        )
        if not isinstance(found, Delivery):
            raise NotFound(f"no delivery of position {position}")
        return found

    async def redeliver(self, webhook: UUID, position: int, *, at: datetime) -> Delivery:
        await self._client.call("redeliver", lambda: self._again([(webhook, position)], at))
        return await self.delivery(webhook, position)

    async def redeliver_failed(self, webhook: UUID, since: datetime, *, at: datetime) -> int:
        def again() -> int:
            failed = [
                key
                for key, delivery in self._database.deliveries.items()
                if key[0] == webhook
                and delivery.state is DeliveryState.FAILED
                and delivery.ended_at >= since
            ]
            return self._again(failed, at)

        return await self._client.call("redeliver_failed", again)

    async def load_health(self, ids: Sequence[UUID]) -> dict[UUID, WebhookHealth]:
        def standing(id: UUID) -> WebhookHealth:
            health = self._database.health.get(id, Health())
            states = [d.state for d in self._database.deliveries.values() if d.webhook == id]
            return WebhookHealth(
                pending=states.count(DeliveryState.PENDING),
                failed=states.count(DeliveryState.FAILED),
                failing_since=health.failing_since,
                last_error=health.last_error if health.failing_since else "",
                missed=health.missed,
                missed_after=health.missed_after,
            )

        return await self._client.call("load_health", lambda: {id: standing(id) for id in ids})

    def _again(self, keys: Sequence[tuple[UUID, int]], at: datetime) -> int:
        again = 0
        for key in keys:
            delivery = self._database.deliveries.get(key)
            if delivery is None or delivery.state is DeliveryState.PENDING:
                continue
            again += 1
            self._database.deliveries[key] = replace(
                delivery, state=DeliveryState.PENDING, failures=0, next_at=None, ended_at=None
            )
            lane = self._database.lanes.setdefault((key[0], delivery.lane), Lane(at))
            if lane.lease is None:
                lane.due_at = min(lane.due_at, at)
        return again


def pending_deliveries(database: MemoryDatabase) -> list[Delivery]:
    """Return the deliveries that are not over."""
    return [d for d in database.deliveries.values() if d.state is DeliveryState.PENDING]
