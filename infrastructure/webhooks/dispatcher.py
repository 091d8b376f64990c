"""Queue webhook deliveries from the event log: each event exactly once, also across crashes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from uuid import UUID

import structlog

from application.append import RecordedEvent
from application.ports.event_log import Wakeups
from application.ports.leadership import Leadership
from application.ports.webhooks import (
    DispatcherStore,
    DispatchTransaction,
    PlannedDelivery,
    StreamBatch,
)
from application.webhooks.notifications import (
    WebhookIndex,
    plan_test_delivery,
    split_at_webhook_change,
    stream_ids,
)
from domain.batch.events import BATCH_EVENTS, BatchStarted
from domain.event import topic_of
from domain.upload.events import UploadRegistered, UploadRejected
from domain.webhook.aggregate import Webhook
from domain.webhook.events import WebhookChanged, WebhookEnabled
from infrastructure.database_errors import LeadershipLost
from infrastructure.event_store.codec import CODEC, Codec
from infrastructure.event_store.reader import (
    read_events_of_topics,
    read_first_events,
    read_head,
    read_log,
)
from infrastructure.postgres.connection import Connection
from infrastructure.postgres.locks import LEADER_TIMEOUTS, WEBHOOKS_LOCK, leadership
from infrastructure.postgres.tracked_positions import WEBHOOKS_POSITION
from infrastructure.webhooks.outbox import jsonb, webhook_of

# Deliveries of events, by the batch of each stream and its label at the time.

_LABEL_TOPICS = [topic_of(event) for event in BATCH_EVENTS if "label" in event.__struct_fields__]


async def plan_deliveries(
    store: DispatcherStore, index: WebhookIndex, events: Sequence[RecordedEvent]
) -> list[PlannedDelivery]:
    """Return the deliveries of these events to the webhooks of the index.

    Raises what the store raises. Renames are read only if a webhook filters by label.
    """
    batches = await store.batches_of(stream_ids(events), with_renames=index.filters_by_label())
    return index.match(events, batches)


async def _batches_of_streams(
    connection: Connection, streams: Collection[UUID], codec: Codec, *, with_renames: bool
) -> dict[UUID, StreamBatch]:
    """Return the batch of each stream, from its first event and those that set the label.

    The latter are searched in the whole stream of the batch.
    """
    batch_of = {
        recorded.stream: recorded.event.batch
        if isinstance(recorded.event, UploadRegistered | UploadRejected)
        else recorded.stream
        for recorded in await read_first_events(connection, streams, codec)
    }
    ids = set(batch_of.values())
    if with_renames:
        found = await read_events_of_topics(connection, ids, _LABEL_TOPICS, codec)
    else:
        found = await read_first_events(connection, ids, codec)
    batches: dict[UUID, StreamBatch] = {}
    for recorded in found:
        if isinstance(event := recorded.event, BatchStarted):
            batches[recorded.stream] = StreamBatch(
                recorded.stream, event.owner, event.label, event.notify
            )
        elif (batch := batches.get(recorded.stream)) and (
            label := getattr(event, "label", None)  # none in an event of a later version
        ) is not None:
            batches[recorded.stream] = batch.with_rename(recorded.position, label)
    return {stream: batches[batch] for stream, batch in batch_of.items() if batch in batches}


# What the follower writes: webhooks as the log has them, and deliveries in their lanes.

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

# The update waits for the transaction that holds the lane; if that one finds the lane empty and
# removes it, it is inserted again. In order, so that two queueing transactions cannot deadlock.
OPEN_LANES = """INSERT INTO webhooks.lanes AS l (webhook, lane, due_at)
SELECT DISTINCT webhook, lane, %s::timestamptz
FROM unnest(%s::uuid[], %s::uuid[]) AS w (webhook, lane) ORDER BY 1, 2
ON CONFLICT (webhook, lane) DO UPDATE SET due_at = l.due_at"""

_WAITING = """SELECT count(*) FROM (SELECT FROM webhooks.deliveries
  WHERE webhook = %s AND state = 'pending' LIMIT %s) w"""

_MISSED = """INSERT INTO webhooks.health AS h (webhook, missed, missed_after) VALUES (%s, %s, %s)
ON CONFLICT (webhook) DO UPDATE SET missed = h.missed + EXCLUDED.missed,
  missed_after = coalesce(h.missed_after, EXCLUDED.missed_after)"""


async def save_webhook(
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


async def insert_deliveries(
    connection: Connection, planned: Sequence[PlannedDelivery], at: datetime
) -> None:
    """Deliveries that wait from now on, and the lanes they wait in."""
    if not planned:
        return
    webhooks = [telling.webhook for telling in planned]
    lanes = [telling.lane for telling in planned]
    await connection.execute(
        _PUT,
        (
            at,
            webhooks,
            [telling.position for telling in planned],
            lanes,
            [telling.stream for telling in planned],
            [telling.version for telling in planned],
            [telling.type for telling in planned],
        ),
    )
    await connection.execute(OPEN_LANES, (at, webhooks, lanes))


async def queue_capacity(connection: Connection, webhook: UUID, most: int) -> int:
    """Return the number of deliveries that may still be queued for this webhook."""
    row = await (await connection.execute(_WAITING, (webhook, most))).fetchone()
    return most - int(row[0]) if row else most


async def count_missed(connection: Connection, webhook: UUID, count: int, after: int) -> None:
    await connection.execute(_MISSED, (webhook, count, after))


EVENTS_PER_ROUND = 1000  # a round
MIN_ROUND_INTERVAL = 0.1  # seconds between two rounds, in which events gather
KEPT_EVERY = 1.0  # seconds at most until a position is saved after which no event was queued
POLL_INTERVAL = 0.5  # seconds between two attempts of a standby to become the leader

# Rows are found by their keys, also in tables that grew since they were analyzed. Commits do not
# wait for the disk: rows and position stand or fall together, and the log is there to read again.
_SESSION_SETTINGS = {
    **LEADER_TIMEOUTS,
    "enable_seqscan": "off",
    "synchronous_commit": "off",
    "lock_timeout": "10s",
}

_log = structlog.get_logger(__name__)


class WebhookDispatcher:
    """Projects the log to the webhook tables. One process is active, others stand by.

    `deliveries_added` is set after deliveries were queued; `most` is the maximum of pending
    deliveries per webhook: events beyond it are counted as missed.
    """

    def __init__(
        self,
        leadership: Leadership[DispatcherStore],
        wakeups: Wakeups,
        deliveries_added: asyncio.Event,
        *,
        most: int,
        now: Callable[[], datetime],
    ) -> None:
        self._leadership = leadership
        self._wakeups = wakeups
        self._deliveries_added = deliveries_added
        self._most = most
        self._now = now
        self._position = 0  # up to which the log was read
        self._kept = 0  # of that, what the database knows
        self._keep_at = 0.0
        self._index = WebhookIndex()

    async def run(self) -> None:
        """Lead, and follow the log until cancelled: what an error interrupts is done again.

        Raises LeadershipLost, and what the session of the leader raises.
        """
        await self._leadership(self._lead)

    async def _lead(self, store: DispatcherStore) -> None:
        self._position = self._kept = await store.position()
        self._index = WebhookIndex(await store.webhooks())
        while True:
            await self._round(store)

    async def _round(self, store: DispatcherStore) -> None:
        """The events up to the next change of a webhook, or as many as fit; then a rest."""
        head = await store.head()
        found = await store.read(
            self._position, limit=EVENTS_PER_ROUND, topics=self._index.topics()
        )
        events, change = split_at_webhook_change(found)
        if change is not None:
            through = change.position
        else:
            through = (
                found[-1].position if len(found) == EVENTS_PER_ROUND else max(head, _last(found))
            )
        if through > self._position:
            await self._take(store, events, change, through)
        if change is None and len(found) < EVENTS_PER_ROUND:
            await asyncio.sleep(MIN_ROUND_INTERVAL)
            await self._wakeups.wait(self._position)

    async def _take(
        self,
        store: DispatcherStore,
        events: Sequence[RecordedEvent],
        change: RecordedEvent | None,
        through: int,
    ) -> None:
        """One transaction: what these events lead to, and the place after them."""
        planned = await plan_deliveries(store, self._index, events)
        clock = asyncio.get_running_loop().time()
        if change is None and not planned and clock < self._keep_at:
            self._position = through
            return
        at = self._now()
        async with store.begin(self._kept, through) as transaction:
            rest = await self._within_bounds(transaction, planned)
            if change is not None:
                rest += [asked] if (asked := plan_test_delivery(change)) else []
                await transaction.save_webhook(self._index.apply(change), change, at)
            await transaction.insert_deliveries(rest, at)
        self._position = self._kept = through
        self._keep_at = clock + KEPT_EVERY
        if rest or change is not None:
            self._deliveries_added.set()

    async def _within_bounds(
        self, transaction: DispatchTransaction, planned: list[PlannedDelivery]
    ) -> list[PlannedDelivery]:
        """Return the deliveries within capacity; count and log the others."""
        kept: list[PlannedDelivery] = []
        rooms = {
            webhook: await transaction.queue_capacity(webhook, self._most)
            for webhook in {telling.webhook for telling in planned}
        }
        missed: dict[UUID, list[int]] = {}
        for telling in planned:
            if rooms[telling.webhook] > 0:
                rooms[telling.webhook] -= 1
                kept.append(telling)
            else:
                missed.setdefault(telling.webhook, []).append(telling.position)
        for webhook, positions in missed.items():
            await transaction.count_missed(webhook, len(positions), positions[0] - 1)
            _log.error("webhook_events_missed", webhook=str(webhook), count=len(positions))
        return kept


def _last(events: Sequence[RecordedEvent]) -> int:
    return events[-1].position if events else 0


def dispatcher_leadership(url: str, codec: Codec = CODEC) -> Leadership[DispatcherStore]:
    """Return the election of the dispatcher among all processes with this database."""
    return leadership(
        url,
        WEBHOOKS_LOCK,
        lambda connection: PostgresDispatcherStore(connection, codec),
        name="webhooks",
        settings=_SESSION_SETTINGS,
        poll_interval=POLL_INTERVAL,
    )


class PostgresDispatcherStore:
    """The port `DispatcherStore` on one connection. Every method raises psycopg.Error."""

    def __init__(self, connection: Connection, codec: Codec = CODEC) -> None:
        self._connection = connection
        self._codec = codec

    async def position(self) -> int:
        return await WEBHOOKS_POSITION.load(self._connection)

    async def webhooks(self) -> Sequence[Webhook]:
        cursor = await self._connection.execute("SELECT webhook FROM webhooks.endpoints")
        return [webhook_of(row[0]) async for row in cursor]

    async def head(self) -> int:
        return await read_head(self._connection)

    async def read(
        self, after: int, *, limit: int, topics: Sequence[str]
    ) -> Sequence[RecordedEvent]:
        return await read_log(self._connection, after, limit, topics, self._codec)

    async def batches_of(
        self, streams: Collection[UUID], *, with_renames: bool
    ) -> Mapping[UUID, StreamBatch]:
        return await _batches_of_streams(
            self._connection, streams, self._codec, with_renames=with_renames
        )

    @asynccontextmanager
    async def begin(self, position: int, through: int) -> AsyncIterator[DispatchTransaction]:
        connection = self._connection
        async with connection.transaction():
            if (saved := await WEBHOOKS_POSITION.lock(connection)) != position:
                raise LeadershipLost(f"the dispatcher is at {saved}, not at {position}")
            yield _PostgresDispatch(connection)
            await WEBHOOKS_POSITION.save(connection, through)


class _PostgresDispatch:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def queue_capacity(self, webhook: UUID, most: int) -> int:
        return await queue_capacity(self._connection, webhook, most)

    async def count_missed(self, webhook: UUID, count: int, after: int) -> None:
        await count_missed(self._connection, webhook, count, after)

    async def save_webhook(self, webhook: Webhook, change: RecordedEvent, at: datetime) -> None:
        await save_webhook(self._connection, webhook, change, at)

    async def insert_deliveries(self, planned: Sequence[PlannedDelivery], at: datetime) -> None:
        await insert_deliveries(self._connection, planned, at)
