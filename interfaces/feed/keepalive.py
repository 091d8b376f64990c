"""Two watches over the feed's clients: that they live, and that they are still who they were."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from uuid import UUID

import structlog

from application.errors import Unavailable
from application.ports.auth import Credential, Keys, Principal, Scope
from infrastructure.settings import Settings
from interfaces.feed.authentication import authenticate
from interfaces.feed.connection import FeedClient, FeedLimits, advance
from interfaces.feed.protocol import CloseCode, Expiring
from interfaces.feed.registry import ConnectionRegistry

SILENCE = 2.5  # heartbeats without a sound after which a peer is taken for dead

_log = structlog.get_logger(__name__)


class KeepAlive:
    """Runs beside the hub's ticks; one pass a while over all clients, not a timer for each."""

    def __init__(
        self,
        roster: ConnectionRegistry,
        keys: Keys,
        settings: Settings,
        limits: FeedLimits,
        now: Callable[[], datetime],
    ) -> None:
        self._roster = roster
        self._keys = keys
        self._heartbeat = settings.feed_heartbeat
        self._buffer = settings.feed_buffer
        self._recheck_every = limits.recheck
        self._warning = limits.warning
        self._now = now

    async def heartbeats(self) -> None:
        """Pings everybody at intervals, and lets go of those who have not been heard for long."""
        while True:
            await asyncio.sleep(self._heartbeat)
            for client in tuple(self._roster.clients):
                try:
                    await self._beat(client)
                except ConnectionError:
                    self._roster.remove(client)

    async def run(self) -> None:
        """Sends away whose key was revoked or whose session is over, and warns whose soon will be.

        Each credential is asked for once, however many clients hold it.
        """
        while True:
            await asyncio.sleep(self._recheck_every)
            holders: dict[Credential, list[FeedClient]] = {}
            for client in self._roster.clients:
                holders.setdefault(client.credential, []).append(client)
            for credential, clients in holders.items():
                await self._recheck(credential, clients)

    async def _beat(self, client: FeedClient) -> None:
        if client.wire.waiting > self._roster.bound(client, self._buffer) // 2:
            self._roster.fall_behind(client)  # which waits for it to drain, but not for ever
            return
        silent = asyncio.get_running_loop().time() - client.heard_at
        if client.wire.answers and silent > SILENCE * self._heartbeat:
            client.end(CloseCode.SILENT, f"nothing was heard for {silent:.0f} s")
            return
        if changes := self._roster.idle_advance(client):
            head, reached = advance(client.place, changes)
            await client.tell(head, client.rows_of(changes), reached)
        await client.wire.beat()

    async def _recheck(self, credential: Credential, clients: list[FeedClient]) -> None:
        try:
            principal = await authenticate(credential, self._keys)
        except Unavailable as error:
            _log.warning("feed_cannot_check_keys", error=str(error))
            return
        for client in clients:
            if client.credential != credential:  # it has gone on with another meanwhile
                continue
            if principal is None or _rights(client.principal) != _rights(principal):
                client.end_access()
            else:
                client.principal = principal  # its end may have been put off
                await self._warn(client)

    async def _warn(self, client: FeedClient) -> None:
        """Tells a client once that its credential ends soon."""
        ends = client.principal.expires_at
        if ends is None or ends == client.warned_of:
            return
        within = (ends - self._now()).total_seconds()
        if within <= self._warning:
            client.warned_of = ends
            with suppress(ConnectionError):  # its own task finds out as well, and cleans up
                await client.say(Expiring(ends, max(0.0, round(within, 3))))


def _rights(principal: Principal) -> tuple[str, Scope, UUID | None]:
    return principal.owner, principal.scope, principal.batch
