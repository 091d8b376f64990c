"""Who is connected, and who of them is up to date."""

from __future__ import annotations

import asyncio
from collections import Counter

from application.ports.feed import Changes
from application.ports.keys import Principal
from interfaces.feed.audience import Audience
from interfaces.feed.client import FeedClient
from interfaces.feed.limits import Limits
from interfaces.feed.messages import CloseCode, Closed


class Roster:
    """The clients of one process, and the position up to which the live ones know everything.

    A client is *live* when it has every row up to `position`, and only then takes part in a
    tick. One that has just subscribed, or reads too slowly, is behind, and catches up by itself.
    """

    def __init__(self, limits: Limits) -> None:
        self.clients: set[FeedClient] = set()
        self.live: set[FeedClient] = set()
        self.strangers = 0  # sockets that have not said yet who they are
        self.anybody = asyncio.Event()  # is live
        self.nobody = asyncio.Event()  # is connected
        self.nobody.set()
        self.closing = False
        self.epoch = ""
        self.position = 0
        self.whole = 0  # the end of the last tick that did not stop short; see Changes.since
        self._limits = limits
        self._held: Counter[str] = Counter()  # connections by the name of their principal
        self._audience: Audience | None = None

    def admit(self, client: FeedClient) -> None:
        """Counts the client in. Raises Closed for one too many, or too late."""
        if self.closing:
            raise Closed(CloseCode.RESTARTING, "the server is restarting")
        self._require_room(client.principal.name)
        self.clients.add(client)
        self._held[client.principal.name] += 1
        self.nobody.clear()

    def rename(self, client: FeedClient, principal: Principal) -> None:
        """The client is this principal now. Raises Closed where that one has too many already."""
        if client.principal.name != principal.name:
            self._require_room(principal.name)
            if client in self.clients:
                self._release(client.principal.name)
                self._held[principal.name] += 1
        client.principal = principal

    def _require_room(self, name: str) -> None:
        if self._held[name] >= self._limits.sockets:
            reason = f"{self._held[name]} are connected as {name}, which is the most"
            raise Closed(CloseCode.TOO_MANY_SOCKETS, reason)

    def _release(self, name: str) -> None:
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]

    def bound(self, client: FeedClient, buffer: int) -> int:
        """Bytes that may wait for the client: `buffer`, or its part of those of its principal."""
        held = self._held[client.principal.name] or 1
        return min(buffer, self._limits.principal_buffer // held)

    def dismiss(self, client: FeedClient) -> None:
        """Forgets the client: nothing of it stays."""
        self.leave(client)
        if client in self.clients:
            self.clients.remove(client)
            self._release(client.principal.name)
        if not self.clients:
            self.nobody.set()

    def join(self, client: FeedClient) -> bool:
        """Makes the client live; False if the others have moved on since it was told."""
        if not self.live:
            self.epoch = client.place.epoch or ""
            self.position = self.whole = client.place.position
        elif client.place.position < self.position:
            return False
        client.stay = object()
        self.live.add(client)
        self._audience = None
        self.anybody.set()
        return True

    def leave(self, client: FeedClient) -> None:
        """Takes the client out of the ticks."""
        if client in self.live:
            self.live.remove(client)
            self._audience = None
        if not self.live:
            self.anybody.clear()

    def audience(self) -> Audience:
        """The live clients, as they are now."""
        if self._audience is None:
            self._audience = Audience(self.live)
        return self._audience

    def fall_behind(self, client: FeedClient) -> None:
        """Takes a live client out of the ticks until it has drained, and then caught up."""
        if client in self.live:
            self.leave(client)
            client.behind.set()

    def unsaid(self, client: FeedClient) -> Changes | None:
        """How far the log has moved on for a live client without a row for it; None: not at all."""
        after = client.place.position
        if client not in self.live or not after < self.position == self.whole:
            return None
        return Changes(self.epoch, after, after, self.position, self.position, more=False)
