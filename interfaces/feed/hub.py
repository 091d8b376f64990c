"""The tick: what changed is read once for everybody who watches, and told to each in one frame."""

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
from interfaces.feed.protocol import CloseCode, Encoding, Error, Row, Welcome
from interfaces.feed.registry import ConnectionRegistry, LiveSet, filter_of, split_pages

# Brings one client from where it is to now: its snapshot, a resume, a slow reader's return.

MAX_POSITION_WAIT = 5.0  # seconds that a client is kept waiting for a position
LOOK = 0.02  # seconds between two looks at whether it is reached

PAUSE = 0.5  # seconds until a database that does not answer is asked again

_log = structlog.get_logger(__name__)


class CatchUp:
    """One way for all three: page after page from the read model, as fast as the client reads.

    Only so many clients at a time ask the database, however many come back at once.
    """

    def __init__(
        self,
        source: FeedSource,
        limits: FeedLimits,
        roster: ConnectionRegistry,
        buffer: int,
    ) -> None:
        self._source = source
        self._limits = limits
        self._roster = roster
        self._buffer = buffer
        self._readers = asyncio.Semaphore(limits.readers)

    async def keep_up(self, client: FeedClient) -> None:
        """Runs as long as the client is connected. Raises Closed, ConnectionError."""
        while True:
            await client.behind.wait()
            await client.drained(self._roster.bound(client, self._buffer) // 2, self._limits.stuck)
            try:
                await self._step(client)
            except Unavailable as error:
                _log.warning("feed_waits_for_database", error=str(error))
                await asyncio.sleep(PAUSE)

    async def _step(self, client: FeedClient) -> None:
        """One page; after the last one the client takes part in the ticks."""
        subscription = client.subscription
        if subscription is None:
            client.behind.clear()
            return
        if client.is_new and not await self._greet(client, subscription):
            return
        place = client.place
        async with self._readers:
            changes = await self._source.changes(
                subscription.selection,
                since=place.whole,
                after=place.position,
                limit=self._limits.page,
            )
        if client.subscription is not subscription:
            return
        if reset := reset_reason(place, changes):
            client.place = START
            await client.say(reset)
            return
        head, reached = advance(place, changes)
        await client.tell(head, client.rows_of(changes), reached)
        if not changes.more and self._roster.join(client):
            client.behind.clear()

    async def _greet(self, client: FeedClient, subscription: Subscription) -> bool:
        """Says what of the subscription cannot be had; False if it was replaced meanwhile."""
        if not await self._is_reflected(client, subscription):
            return False
        async with self._readers:
            known = await self._source.known(subscription.asked, owner=subscription.selection.owner)
        if client.subscription is not subscription:
            return False
        client.is_new = False
        for frame in (*subscription.first, *unknown_batch_errors(subscription.asked, known)):
            await client.say(frame)
        return True

    async def _is_reflected(self, client: FeedClient, subscription: Subscription) -> bool:
        """Wait until rows reflect the position asked for.

        False if the subscription was replaced meanwhile, or ended because that takes too long.
        """
        if not subscription.least:
            return True
        loop = asyncio.get_running_loop()
        end = loop.time() + MAX_POSITION_WAIT
        reached, head = await self._source.reach()
        least = head if subscription.least == "latest" else subscription.least
        while reached < least:
            if loop.time() > end:
                detail = f"position {least} is not reflected yet, only {reached}; subscribe again"
                client.subscription = None
                await client.say(Error("position_not_reached", detail))
                return False
            await asyncio.sleep(LOOK)
            if client.subscription is not subscription:
                return False
            reached, _ = await self._source.reach()
        return True


# One tick's changes, cut to what each client follows: encoded once, joined once per audience.


class TickEncoder:
    """Rows of many owners, and for each client the few it may see and follows.

    Clients that follow the same share the joined bytes.
    """

    def __init__(self, changes: ChangePage, encoding: Encoding) -> None:
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

    def rows_for(self, selection: FeedFilter, place: ClientPosition) -> bytes | None:
        """The selected rows beyond the client's place, joined; None if there are none."""
        after = max(place.position, self.changes.after)
        key = (selection, after, max(place.whole, self.changes.since))
        if key not in self._joined:
            self._joined[key] = self._join(*key)
        return self._joined[key]

    def _join(self, selection: FeedFilter, after: int, since: int) -> bytes | None:
        lists = (
            self._encode(self._batches_of(selection), after),
            self._encode(self._of(self._uploads, selection), after),
            self._encode(self._of(self._attempts, selection), since),
        )
        return self._encoding.rows(*lists) if any(lists) else None

    def _batches_of(self, selection: FeedFilter) -> Iterable[BatchView]:
        wanted = self._batches if selection.batches is None else selection.batches
        for id in wanted:
            row = self._batches.get(id)
            if row is not None and selection.owner in (None, row.owner):
                yield row

    def _of(self, rows: Mapping[UUID, Sequence[Row]], selection: FeedFilter) -> Iterable[Row]:
        for batch in selection.uploads_of:
            if self._is_owned(batch, selection.owner):
                yield from rows.get(batch, ())

    def _is_owned(self, batch: UUID, owner: str | None) -> bool:
        """Whether uploads of this batch may be seen: a batch and its uploads have one owner."""
        uploads: Sequence[UploadView] = self._uploads.get(batch, ())
        return bool(uploads) and owner in (None, uploads[0].owner)

    def _encode(self, rows: Iterable[Row], position: int) -> list[bytes]:
        return [self._once(row) for row in rows if row.position > position]

    def _once(self, row: Row) -> bytes:
        known = self._encoded.get(id(row))
        if known is None:
            known = self._encoded[id(row)] = self._encoding.row(row)
        return known


# The tick adapts: where it takes more than its share of the processor, it comes less often.
CPU_SHARE = 1 / 3
MAX_PERIOD = 0.4  # seconds between two ticks, unless the settings ask for more
YIELD_EVERY = 100  # clients that are told before others in the process get a turn


class FeedHub:
    """The feed of one process. `run` must be running for clients to hear anything new."""

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
        self.roster = ConnectionRegistry(self.limits)
        self._source = source
        self._wakeups = wakeups
        self._now = now
        self._catch_up = CatchUp(source, self.limits, self.roster, settings.feed_buffer)

    async def run(self) -> None:
        """Ticks, pings and rechecks until cancelled; while nobody watches it sleeps."""
        vigil = KeepAlive(self.roster, self.keys, self.settings, self.limits, self._now)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(vigil.heartbeats(), name="feed-heartbeats")
            tasks.create_task(vigil.run(), name="feed-rechecks")
            tasks.create_task(self._tick_for_ever(), name="feed-ticks")

    async def close(self) -> None:
        """Sends everybody away with a code that says: connect again. For the server's end."""
        self.roster.closing = True
        for client in self.roster.clients:
            client.end(CloseCode.RESTARTING, "the server is restarting")
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * self.limits.farewell):
                await self.roster.nobody.wait()

    def welcome(self, client: FeedClient) -> Welcome:
        """Who this client is taken for."""
        known = client.principal
        return Welcome(known.name, known.owner, self.settings.feed_heartbeat, known.expires_at)

    def follow(self, client: FeedClient, subscription: Subscription) -> None:
        """The client wants this from now on."""
        self.roster.leave(client)
        client.follow(subscription)

    async def keep_up(self, client: FeedClient) -> None:
        """Brings the client up to date whenever it is behind. Raises Closed, ConnectionError."""
        await self._catch_up.keep_up(client)

    async def _tick_for_ever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.roster.anybody.wait()
            await self._wakeups.wait(self.roster.position)
            started, spent = loop.time(), time.thread_time()
            try:
                while await self._tick():
                    pass
            except Unavailable as error:
                _log.warning("feed_waits_for_database", error=str(error))
                await asyncio.sleep(PAUSE)
                continue
            period = adaptive_period(self.settings.feed_tick, time.thread_time() - spent)
            await asyncio.sleep(started + period - loop.time())

    async def _tick(self) -> bool:
        """Reads once for all, and tells each what it follows; whether there is more to read."""
        roster, audience = self.roster, self.roster.audience()
        changes = await self._source.changes(
            audience.selection,
            since=roster.whole,
            after=roster.position,
            limit=self.limits.tick,
        )
        if changes.epoch != roster.epoch or changes.head < roster.position:
            # The read model was rebuilt, or the log restored: each finds out by catching up.
            for client in tuple(roster.live):
                roster.fall_behind(client)
            return False
        if changes.to > changes.after:
            shares = audience.concerned(changes)
            for part in split_pages(changes, shares.values(), self.limits.page):
                await self._deliver(part, audience, shares)
            roster.position = changes.to
            roster.whole = roster.whole if changes.more else changes.to
        for client in tuple(roster.live):
            # Whoever joined while this was read, or told, may need more of it than it was told.
            if client.place.position < changes.to and not audience.includes(client):
                roster.fall_behind(client)
        return changes.more

    async def _deliver(
        self, changes: ChangePage, audience: LiveSet, clients: Iterable[FeedClient]
    ) -> None:
        """Tells each of these clients; others in the process get a turn in between."""
        ticks: dict[Encoding, TickEncoder] = {}
        for number, client in enumerate(clients):
            if client in self.roster.live and audience.includes(client):
                if client.encoding not in ticks:
                    ticks[client.encoding] = TickEncoder(changes, client.encoding)
                await self._tell(client, ticks[client.encoding])
            if number % YIELD_EVERY == YIELD_EVERY - 1:
                await asyncio.sleep(0)

    async def _tell(self, client: FeedClient, tick: TickEncoder) -> None:
        """One frame for one client, unless it has not taken the last ones yet."""
        rows = tick.rows_for(filter_of(client), client.place)
        if rows is None:
            return
        if client.wire.waiting > self.roster.bound(client, self.settings.feed_buffer):
            self.roster.fall_behind(client)
            return
        head, reached = advance(client.place, tick.changes)
        try:
            await client.tell(head, rows, reached)
        except ConnectionError:  # its own task finds out as well, and cleans up
            self.roster.leave(client)


def adaptive_period(tick: float, spent: float) -> float:
    """Seconds from one tick to the next, when this one took so many of the processor."""
    return max(tick, min(spent / CPU_SHARE, MAX_PERIOD))
