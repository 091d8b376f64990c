"""Brings one client from where it is to now: its snapshot, a resume, a slow reader's return."""

from __future__ import annotations

import asyncio

import structlog

from application.errors import Unavailable
from application.ports.feed import FeedSource
from interfaces.feed.client import FeedClient
from interfaces.feed.limits import Limits
from interfaces.feed.messages import Error
from interfaces.feed.place import START, advance, refused
from interfaces.feed.roster import Roster
from interfaces.feed.subscription import Subscription, unknown_among

LONGEST_WAIT = 5.0  # seconds that a client is kept waiting for a position
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
        limits: Limits,
        roster: Roster,
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
        if reset := refused(place, changes):
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
        for frame in (*subscription.first, *unknown_among(subscription.asked, known)):
            await client.say(frame)
        return True

    async def _is_reflected(self, client: FeedClient, subscription: Subscription) -> bool:
        """Wait until rows reflect the position asked for.

        False if the subscription was replaced meanwhile, or ended because that takes too long.
        """
        if not subscription.least:
            return True
        loop = asyncio.get_running_loop()
        end = loop.time() + LONGEST_WAIT
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
