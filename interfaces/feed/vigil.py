"""Two watches over the feed's clients: that they live, and that they are still who they were."""

from __future__ import annotations

import asyncio

import structlog

from application.errors import Unavailable
from application.ports.keys import Keys, Principal
from infrastructure.settings import Settings
from interfaces.feed.admission import Credential, principal_for
from interfaces.feed.client import FeedClient
from interfaces.feed.limits import Limits
from interfaces.feed.messages import CloseCode, Heartbeat
from interfaces.feed.place import advance
from interfaces.feed.roster import Roster

SILENCE = 2.5  # heartbeats without a sound after which a peer is taken for dead

_log = structlog.get_logger(__name__)


class Vigil:
    """Runs beside the hub's ticks; one pass a while over all clients, not a timer for each."""

    def __init__(self, roster: Roster, keys: Keys, settings: Settings, limits: Limits) -> None:
        self._roster = roster
        self._keys = keys
        self._heartbeat = settings.feed_heartbeat
        self._bound = settings.feed_buffer // 2
        self._recheck_every = limits.recheck

    async def heartbeats(self) -> None:
        """Pings everybody at intervals, and lets go of those who have not been heard for long."""
        while True:
            await asyncio.sleep(self._heartbeat)
            for client in tuple(self._roster.clients):
                try:
                    await self._beat(client)
                except ConnectionError:
                    self._roster.dismiss(client)

    async def rechecks(self) -> None:
        """Sends away whose key was revoked or whose session is over. Each is asked for once."""
        while True:
            await asyncio.sleep(self._recheck_every)
            holders: dict[Credential, list[FeedClient]] = {}
            for client in self._roster.clients:
                holders.setdefault(client.credential, []).append(client)
            for credential, clients in holders.items():
                await self._recheck(credential, clients)

    async def _beat(self, client: FeedClient) -> None:
        if client.wire.waiting > self._bound:
            self._roster.fall_behind(client)  # which waits for it to drain, but not for ever
            return
        silent = asyncio.get_running_loop().time() - client.heard_at
        if silent > SILENCE * self._heartbeat:
            client.end(CloseCode.SILENT, f"nothing was heard for {silent:.0f} s")
            return
        if changes := self._roster.unsaid(client):
            head, reached = advance(client.place, changes)
            await client.tell(head, client.rows_of(changes), reached)
        await client.say(Heartbeat())
        await client.wire.socket.ping()

    async def _recheck(self, credential: Credential, clients: list[FeedClient]) -> None:
        try:
            principal = await principal_for(credential, self._keys)
        except Unavailable as error:
            _log.warning("feed_cannot_check_keys", error=str(error))
            return
        for client in clients:
            if not _same(client.principal, principal):
                client.end(CloseCode.SIGNED_OUT, "the key was revoked or the session is over")


def _same(known: Principal, now: Principal | None) -> bool:
    """Whether the credential still gives the same rights; its end may have been put off."""
    if now is None:
        return False
    return (known.owner, known.scope, known.batch) == (now.owner, now.scope, now.batch)
