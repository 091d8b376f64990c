"""The tick: what changed is read once for everybody who watches, and told to each in one frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

import structlog

from application.errors import Unavailable
from application.ports.event_log import Wakeups
from application.ports.feed import Changes, FeedSource, Selection
from application.ports.keys import Keys
from infrastructure.settings import Settings
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

Audience: TypeAlias = dict[FeedClient, Subscription]

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
        self._catch_up = CatchUp(source, self.limits, settings.feed_buffer, self.roster.join)

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
            started = loop.time()
            try:
                more = await self._tick()
            except Unavailable as error:
                _log.warning("feed_waits_for_database", error=str(error))
                await asyncio.sleep(PAUSE)
                continue
            if not more:
                await asyncio.sleep(max(0.0, started + self.settings.feed_tick - loop.time()))

    async def _tick(self) -> bool:
        """Reads once for all, and tells each what it follows; whether there is more to read."""
        roster = self.roster
        audience = {client: sub for client in roster.live if (sub := client.subscription)}
        changes = await self._source.changes(
            _union(subscription.selection for subscription in audience.values()),
            since=roster.whole,
            after=roster.position,
            limit=self.limits.page,
        )
        if changes.epoch != roster.epoch or changes.head < roster.position:
            # The read model was rebuilt, or the log restored: each finds out by catching up.
            for client in tuple(roster.live):
                roster.fall_behind(client)
            return False
        if changes.to > changes.after:
            await self._deliver(changes, audience)
            roster.position = changes.to
            roster.whole = roster.whole if changes.more else changes.to
        for client in tuple(roster.live):
            # Whoever joined while this was read may need more of it than was read.
            joined_late = audience.get(client) is not client.subscription
            if joined_late and client.place.position < changes.to:
                roster.fall_behind(client)
        return changes.more

    async def _deliver(self, changes: Changes, audience: Audience) -> None:
        ticks: dict[Encoding, Tick] = {}
        for client, subscription in audience.items():
            if client not in self.roster.live or client.subscription is not subscription:
                continue
            if client.encoding not in ticks:
                ticks[client.encoding] = Tick(changes, client.encoding)
            await self._tell(client, ticks[client.encoding], subscription.selection)

    async def _tell(self, client: FeedClient, tick: Tick, selection: Selection) -> None:
        """One frame for one client, unless it has not taken the last ones yet."""
        rows = tick.rows_for(selection, client.place)
        if rows is None:
            return
        if client.wire.waiting > self.settings.feed_buffer:
            self.roster.fall_behind(client)
            return
        head, reached = advance(client.place, tick.changes)
        try:
            await client.tell(head, rows, reached)
        except ConnectionError:  # its own task finds out as well, and cleans up
            self.roster.leave(client)


def _union(selections: Iterable[Selection]) -> Selection:
    """What all of them follow together, whoever owns it."""
    everything = False
    batches: set[UUID] = set()
    uploads_of: set[UUID] = set()
    for selection in selections:
        uploads_of |= selection.uploads_of
        everything = everything or selection.batches is None
        batches |= selection.batches or frozenset()
    return Selection(None, None if everything else frozenset(batches), frozenset(uploads_of))
