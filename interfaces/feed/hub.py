"""The tick: what changed is read once for everybody who watches, and told to each in one frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime

import structlog

from application.errors import Unavailable
from application.ports.event_log import Wakeups
from application.ports.feed import Changes, FeedSource
from application.ports.keys import Keys
from infrastructure.settings import Settings
from interfaces.feed.audience import Audience, in_parts, selection_of
from interfaces.feed.catch_up import PAUSE, CatchUp
from interfaces.feed.client import FeedClient
from interfaces.feed.encoding import Encoding
from interfaces.feed.limits import Limits
from interfaces.feed.messages import CloseCode, Welcome
from interfaces.feed.place import advance
from interfaces.feed.roster import Roster
from interfaces.feed.subscription import Subscription
from interfaces.feed.tick import Tick
from interfaces.feed.vigil import Vigil

# The tick adapts: where it takes more than its share of the processor, it comes less often.
SHARE = 1 / 3
SLOWEST = 0.4  # seconds between two ticks, unless the settings ask for more
TURN = 100  # clients that are told before others in the process get a turn

_log = structlog.get_logger(__name__)


class FeedHub:
    """The feed of one process. `run` must be running for clients to hear anything new."""

    def __init__(
        self,
        source: FeedSource,
        wakeups: Wakeups,
        keys: Keys,
        settings: Settings,
        now: Callable[[], datetime],
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.keys = keys
        self.settings = settings
        self.roster = Roster(self.limits)
        self._source = source
        self._wakeups = wakeups
        self._now = now
        self._catch_up = CatchUp(source, self.limits, self.roster, settings.feed_buffer)

    async def run(self) -> None:
        """Ticks, pings and rechecks until cancelled; while nobody watches it sleeps."""
        vigil = Vigil(self.roster, self.keys, self.settings, self.limits, self._now)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(vigil.heartbeats(), name="feed-heartbeats")
            tasks.create_task(vigil.rechecks(), name="feed-rechecks")
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
            period = adapted(self.settings.feed_tick, time.thread_time() - spent)
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
            for part in in_parts(changes, shares.values(), self.limits.page):
                await self._deliver(part, audience, shares)
            roster.position = changes.to
            roster.whole = roster.whole if changes.more else changes.to
        for client in tuple(roster.live):
            # Whoever joined while this was read, or told, may need more of it than it was told.
            if client.place.position < changes.to and not audience.includes(client):
                roster.fall_behind(client)
        return changes.more

    async def _deliver(
        self, changes: Changes, audience: Audience, clients: Iterable[FeedClient]
    ) -> None:
        """Tells each of these clients; others in the process get a turn in between."""
        ticks: dict[Encoding, Tick] = {}
        for number, client in enumerate(clients):
            if client in self.roster.live and audience.includes(client):
                if client.encoding not in ticks:
                    ticks[client.encoding] = Tick(changes, client.encoding)
                await self._tell(client, ticks[client.encoding])
            if number % TURN == TURN - 1:
                await asyncio.sleep(0)

    async def _tell(self, client: FeedClient, tick: Tick) -> None:
        """One frame for one client, unless it has not taken the last ones yet."""
        rows = tick.rows_for(selection_of(client), client.place)
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


def adapted(tick: float, spent: float) -> float:
    """Seconds from one tick to the next, when this one took so many of the processor."""
    return max(tick, min(spent / SHARE, SLOWEST))
