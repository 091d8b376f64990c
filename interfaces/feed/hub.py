"""The feed's hub: periodic ticks for live clients, and catching up for those that are behind.

A tick reads the changes once for all live clients, and sends each a frame of its rows.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import structlog

from application.errors import Unavailable
from application.ports.auth import Keys
from application.ports.event_log import Wakeups
from application.ports.read_model import ChangePage, FeedFilter, FeedSource
from application.views import AttemptView, BatchView, UploadView
from infrastructure.settings import Settings
from interfaces.feed import protocol
from interfaces.feed.connection import (
    START,
    ClientPosition,
    FeedClient,
    FeedLimits,
    Subscription,
    advance,
    reset_reason,
    unknown_batch_errors,
)
from interfaces.feed.keepalive import KeepAlive
from interfaces.feed.registry import ConnectionRegistry, LiveSet, filter_of, split_pages

MAX_POSITION_WAIT = 5.0  # seconds that a client waits for `min_position`
POSITION_POLL_INTERVAL = 0.02  # seconds
DATABASE_RETRY_DELAY = 0.5  # seconds

_log = structlog.get_logger(__name__)


class CatchUp:
    """Sender of pages from the read model, until a client is live.

    The same for a snapshot, a resumed subscription and a slow reader; pages are sent as fast as the
    client reads. The number of concurrent queries is limited, for when many clients reconnect.
    """

    def __init__(
        self,
        source: FeedSource,
        limits: FeedLimits,
        registry: ConnectionRegistry,
        buffer: int,
    ) -> None:
        self._source = source
        self._limits = limits
        self._registry = registry
        self._buffer = buffer
        self._query_slots = asyncio.Semaphore(limits.max_catch_up_queries)

    async def run(self, client: FeedClient) -> None:
        """Send pages whenever the client is behind. Raises ConnectionClosed, ConnectionError."""
        while True:
            await client.behind.wait()
            await client.wait_drained(
                self._registry.buffer_limit(client, self._buffer) // 2, self._limits.drain_timeout
            )
            try:
                await self._send_page(client)
            except Unavailable as error:
                _log.warning("feed_database_unavailable", error=str(error))
                await asyncio.sleep(DATABASE_RETRY_DELAY)

    async def _send_page(self, client: FeedClient) -> None:
        """Send one page; after the last one the client is live."""
        subscription = client.subscription
        if subscription is None:
            client.behind.clear()
            return
        if client.is_new and not await self._send_initial_frames(client, subscription):
            return
        progress = client.progress
        async with self._query_slots:
            changes = await self._source.changes(
                subscription.selection,
                since=progress.attempts_position,
                after=progress.position,
                limit=self._limits.page_size,
            )
        if client.subscription is not subscription:
            return
        if reset := reset_reason(progress, changes):
            client.progress = START
            await client.send_control(reset)
            return
        head, reached = advance(progress, changes)
        await client.send_rows(head, client.encode_rows(changes), reached)
        if not changes.more and self._registry.join(client):
            client.behind.clear()

    async def _send_initial_frames(self, client: FeedClient, subscription: Subscription) -> bool:
        """Send the errors of the subscription; return False if it was replaced meanwhile."""
        if not await self._is_reflected(client, subscription):
            return False
        async with self._query_slots:
            known = await self._source.known(
                subscription.requested, owner=subscription.selection.owner
            )
        if client.subscription is not subscription:
            return False
        client.is_new = False
        for frame in (
            *subscription.initial_frames,
            *unknown_batch_errors(subscription.requested, known),
        ):
            await client.send_control(frame)
        return True

    async def _is_reflected(self, client: FeedClient, subscription: Subscription) -> bool:
        """Wait until rows reflect the position asked for.

        False if the subscription was replaced meanwhile, or ended because that takes too long.
        """
        if not subscription.min_position:
            return True
        loop = asyncio.get_running_loop()
        end = loop.time() + MAX_POSITION_WAIT
        reached, head = await self._source.reach()
        least = head if subscription.min_position == "latest" else subscription.min_position
        while reached < least:
            if loop.time() > end:
                detail = f"position {least} is not reflected yet, only {reached}; subscribe again"
                client.subscription = None
                await client.send_control(protocol.Error("position_not_reached", detail))
                return False
            await asyncio.sleep(POSITION_POLL_INTERVAL)
            if client.subscription is not subscription:
                return False
            reached, _ = await self._source.reach()
        return True


class TickEncoder:
    """Encoder of one tick: each row is encoded once, and joined once per filter.

    Clients with the same filter share the joined bytes.
    """

    def __init__(self, changes: ChangePage, encoding: protocol.Encoding) -> None:
        self.changes = changes
        self._encoding = encoding
        self._encoded: dict[int, bytes] = {}
        self._joined: dict[tuple[FeedFilter, int, int], bytes | None] = {}
        self._batches: dict[UUID, BatchView] = {row.id: row for row in changes.batches}
        self._uploads: dict[UUID, list[UploadView]] = defaultdict(list)
        self._attempts: dict[UUID, list[AttemptView]] = defaultdict(list)
        home = {}
        for upload in changes.uploads:
            home[upload.id] = upload.batch
            self._uploads[upload.batch].append(upload)
        for attempt in changes.attempts:
            self._attempts[home[attempt.upload]].append(attempt)

    def rows_for(self, selection: FeedFilter, progress: ClientPosition) -> bytes | None:
        """Return the selected rows after the client's position, joined; None without rows."""
        after = max(progress.position, self.changes.after)
        key = (selection, after, max(progress.attempts_position, self.changes.since))
        if key not in self._joined:
            self._joined[key] = self._join(*key)
        return self._joined[key]

    def _join(self, selection: FeedFilter, after: int, since: int) -> bytes | None:
        lists = (
            self._encode(self._batches_of(selection), after),
            self._encode(self._rows_of(self._uploads, selection), after),
            self._encode(self._rows_of(self._attempts, selection), since),
        )
        return self._encoding.rows(*lists) if any(lists) else None

    def _batches_of(self, selection: FeedFilter) -> Iterable[BatchView]:
        wanted = self._batches if selection.batches is None else selection.batches
        for id in wanted:
            row = self._batches.get(id)
            if row is not None and selection.owner in (None, row.owner):
                yield row

    def _rows_of(
        self, rows: Mapping[UUID, Sequence[protocol.Row]], selection: FeedFilter
    ) -> Iterable[protocol.Row]:
        for batch in selection.uploads_of:
            if self._is_owned(batch, selection.owner):
                yield from rows.get(batch, ())

    def _is_owned(self, batch: UUID, owner: str | None) -> bool:
        """Return whether the owner may see the batch's uploads: all of them have one owner."""
        uploads: Sequence[UploadView] = self._uploads.get(batch, ())
        return bool(uploads) and owner in (None, uploads[0].owner)

    def _encode(self, rows: Iterable[protocol.Row], position: int) -> list[bytes]:
        return [self._encode_once(row) for row in rows if row.position > position]

    def _encode_once(self, row: protocol.Row) -> bytes:
        known = self._encoded.get(id(row))
        if known is None:
            known = self._encoded[id(row)] = self._encoding.row(row)
        return known


MAX_CPU_SHARE = 1 / 3  # of one core; beyond it ticks become less frequent
MAX_PERIOD = 0.4  # seconds between two ticks, unless the settings ask for more
YIELD_EVERY = 100  # clients, between which other tasks of the process may run


class FeedHub:
    """The feed of one process. Changes are sent while `run` is running."""

    def __init__(
        self,
        source: FeedSource,
        wakeups: Wakeups,
        keys: Keys,
        settings: Settings,
        now: Callable[[], datetime],
        limits: FeedLimits | None = None,
    ) -> None:
        self.limits = limits or FeedLimits()
        self.keys = keys
        self.settings = settings
        self.registry = ConnectionRegistry(self.limits)
        self._source = source
        self._wakeups = wakeups
        self._now = now
        self._catch_up = CatchUp(source, self.limits, self.registry, settings.feed_buffer)

    async def run(self) -> None:
        """Tick, ping and re-authenticate until cancelled; sleep while no client is live."""
        keep_alive = KeepAlive(self.registry, self.keys, self.settings, self.limits, self._now)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(keep_alive.ping_clients(), name="feed-heartbeats")
            tasks.create_task(keep_alive.check_credentials(), name="feed-rechecks")
            tasks.create_task(self._run_ticks(), name="feed-ticks")

    async def close(self) -> None:
        """Close all connections with a code for reconnecting, at the server's shutdown."""
        self.registry.closing = True
        for client in self.registry.clients:
            client.close(protocol.CloseCode.RESTARTING, "the server is restarting")
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * self.limits.close_timeout):
                await self.registry.is_empty.wait()

    def welcome_frame(self, client: FeedClient) -> protocol.Welcome:
        """Return the frame with the client's principal."""
        known = client.principal
        return protocol.Welcome(
            known.name, known.owner, self.settings.feed_heartbeat, known.expires_at
        )

    def follow(self, client: FeedClient, subscription: Subscription) -> None:
        """Replace the client's subscription."""
        self.registry.leave(client)
        client.follow(subscription)

    async def catch_up(self, client: FeedClient) -> None:
        """Bring the client up to date whenever it is behind, until cancelled.

        Raises ConnectionClosed, ConnectionError.
        """
        await self._catch_up.run(client)

    async def _run_ticks(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.registry.has_live.wait()
            await self._wakeups.wait(self.registry.position)
            started, spent = loop.time(), time.thread_time()
            try:
                while await self._tick():
                    pass
            except Unavailable as error:
                _log.warning("feed_database_unavailable", error=str(error))
                await asyncio.sleep(DATABASE_RETRY_DELAY)
                continue
            period = adaptive_period(self.settings.feed_tick, time.thread_time() - spent)
            await asyncio.sleep(started + period - loop.time())

    async def _tick(self) -> bool:
        """Read and deliver one page of changes; return whether there are more."""
        registry, live_set = self.registry, self.registry.live_set()
        changes = await self._source.changes(
            live_set.selection,
            since=registry.attempts_position,
            after=registry.position,
            limit=self.limits.tick_size,
        )
        if changes.epoch != registry.epoch or changes.head < registry.position:
            # The read model was rebuilt, or the log restored: catching up resets each client.
            for client in tuple(registry.live):
                registry.fall_behind(client)
            return False
        if changes.to > changes.after:
            shares = live_set.recipients(changes)
            for part in split_pages(changes, shares.values(), self.limits.page_size):
                await self._deliver(part, live_set, shares)
            registry.position = changes.to
            registry.attempts_position = registry.attempts_position if changes.more else changes.to
        for client in tuple(registry.live):
            # A client that joined during the read or the delivery may have missed rows.
            if client.progress.position < changes.to and not live_set.includes(client):
                registry.fall_behind(client)
        return changes.more

    async def _deliver(
        self, changes: ChangePage, live_set: LiveSet, clients: Iterable[FeedClient]
    ) -> None:
        """Send the changes to each client, and yield to other tasks in between."""
        encoders: dict[protocol.Encoding, TickEncoder] = {}
        for number, client in enumerate(clients):
            if client in self.registry.live and live_set.includes(client):
                if client.encoding not in encoders:
                    encoders[client.encoding] = TickEncoder(changes, client.encoding)
                await self._send_tick(client, encoders[client.encoding])
            if number % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)

    async def _send_tick(self, client: FeedClient, encoder: TickEncoder) -> None:
        """Send one frame to one client, unless its buffer is full."""
        rows = encoder.rows_for(filter_of(client), client.progress)
        if rows is None:
            return
        if client.transport.buffered_bytes > self.registry.buffer_limit(
            client, self.settings.feed_buffer
        ):
            self.registry.fall_behind(client)
            return
        head, reached = advance(client.progress, encoder.changes)
        try:
            await client.send_rows(head, rows, reached)
        except ConnectionError:  # its own task also gets the error, and cleans up
            self.registry.leave(client)


def adaptive_period(tick: float, spent: float) -> float:
    """Return the seconds until the next tick, if this one used `spent` seconds of CPU time."""
    return max(tick, min(spent / MAX_CPU_SHARE, MAX_PERIOD))
