"""Those who take part in the ticks, and who of them a change concerns."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from uuid import UUID

from application.ports.auth import Principal
from application.ports.read_model import ChangePage, FeedFilter
from interfaces.feed.connection import FeedClient, FeedLimits
from interfaces.feed.protocol import CloseCode, ConnectionClosed


class LiveSet:
    """The live clients of one moment; made anew whenever somebody joins or leaves.

    A client *stays* from when it joins the ticks until it leaves them; one that has left and come
    back is another stay, and was not told what the ticks of this audience told.
    """

    def __init__(self, clients: Iterable[FeedClient]) -> None:
        self._stays = {client: client.stay for client in clients}
        self._everything: list[FeedClient] = []  # those who follow every batch of an owner
        self._by_batch: dict[UUID, list[FeedClient]] = defaultdict(list)
        uploads_of: set[UUID] = set()
        for client in self._stays:
            selection = filter_of(client)
            uploads_of |= selection.uploads_of
            if selection.batches is None:
                self._everything.append(client)
            for id in (selection.batches or frozenset()) | selection.uploads_of:
                self._by_batch[id].append(client)
        followed = None if self._everything else frozenset(self._by_batch)
        self.selection = FeedFilter(None, followed, frozenset(uploads_of))
        """What all of them follow together, whoever owns it."""

    def includes(self, client: FeedClient) -> bool:
        """Whether the client has been in the ticks all the time."""
        return self._stays.get(client) is client.stay

    def concerned(self, changes: ChangePage) -> Counter[FeedClient]:
        """Who may have to be told of these changes, with the most rows that it can be."""
        rows = Counter(upload.batch for upload in changes.uploads)
        rows.update(batch.id for batch in changes.batches)
        shares: Counter[FeedClient] = Counter()
        for id, count in rows.items():
            for client in self._by_batch.get(id, ()):
                shares[client] += count
        if changes.batches:
            for client in self._everything:
                shares[client] += len(changes.batches)
        return shares


def filter_of(client: FeedClient) -> FeedFilter:
    """What a live client follows."""
    assert client.subscription is not None, "nobody is live without a subscription"
    return client.subscription.selection


def split_pages(changes: ChangePage, shares: Collection[int], most: int) -> Iterable[ChangePage]:
    """The changes at once, or, where a share of them has more rows, `most` rows after the other.

    Each part is what a shorter page of the read model would have been.
    """
    if max(shares, default=0) <= most:
        yield changes
        return
    batches, uploads = changes.batches, changes.uploads
    positions = sorted([row.position for row in batches] + [row.position for row in uploads])
    home = {upload.id: upload.position for upload in uploads}
    after = changes.after
    for to in (*positions[most - 1 : -1 : most], changes.to):
        yield ChangePage(
            epoch=changes.epoch,
            since=changes.since,
            after=after,
            to=to,
            head=changes.head,
            more=changes.more or to < changes.to,
            batches=[row for row in batches if after < row.position <= to],
            uploads=[row for row in uploads if after < row.position <= to],
            attempts=[row for row in changes.attempts if after < home[row.upload] <= to],
        )
        after = to


# Who is connected, and who of them is up to date.


class ConnectionRegistry:
    """The clients of one process, and the position up to which the live ones know everything.

    A client is *live* when it has every row up to `position`, and only then takes part in a
    tick. One that has just subscribed, or reads too slowly, is behind, and catches up by itself.
    """

    def __init__(self, limits: FeedLimits) -> None:
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
        self._audience: LiveSet | None = None

    def admit(self, client: FeedClient) -> None:
        """Counts the client in. Raises Closed for one too many, or too late."""
        if self.closing:
            raise ConnectionClosed(CloseCode.RESTARTING, "the server is restarting")
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
            raise ConnectionClosed(CloseCode.TOO_MANY_SOCKETS, reason)

    def _release(self, name: str) -> None:
        self._held[name] -= 1
        if not self._held[name]:
            del self._held[name]

    def bound(self, client: FeedClient, buffer: int) -> int:
        """Bytes that may wait for the client: `buffer`, or its part of those of its principal."""
        held = self._held[client.principal.name] or 1
        return min(buffer, self._limits.principal_buffer // held)

    def remove(self, client: FeedClient) -> None:
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

    def audience(self) -> LiveSet:
        """The live clients, as they are now."""
        if self._audience is None:
            self._audience = LiveSet(self.live)
        return self._audience

    def fall_behind(self, client: FeedClient) -> None:
        """Takes a live client out of the ticks until it has drained, and then caught up."""
        if client in self.live:
            self.leave(client)
            client.behind.set()

    def idle_advance(self, client: FeedClient) -> ChangePage | None:
        """How far the log has moved on for a live client without a row for it; None: not at all."""
        after = client.place.position
        if client not in self.live or not after < self.position == self.whole:
            return None
        return ChangePage(self.epoch, after, after, self.position, self.position, more=False)
