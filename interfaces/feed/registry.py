"""Registry of feed connections, and the live ones that a change concerns."""

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
    """Immutable set of the live clients; a new one is made when a client joins or leaves.

    It also holds the generation in which each client joined: a client that left and joined again
    did not receive the ticks of this set.
    """

    def __init__(self, clients: Iterable[FeedClient]) -> None:
        self._generations = {client: client.join_generation for client in clients}
        self._everything: list[FeedClient] = []  # clients that follow every batch of an owner
        self._by_batch: dict[UUID, list[FeedClient]] = defaultdict(list)
        uploads_of: set[UUID] = set()
        for client in self._generations:
            selection = filter_of(client)
            uploads_of |= selection.uploads_of
            if selection.batches is None:
                self._everything.append(client)
            for id in (selection.batches or frozenset()) | selection.uploads_of:
                self._by_batch[id].append(client)
        followed = None if self._everything else frozenset(self._by_batch)
        self.selection = FeedFilter(None, followed, frozenset(uploads_of))
        """Union of the filters of all clients, for any owner."""

    def includes(self, client: FeedClient) -> bool:
        """Return whether the client has been live since this set was made."""
        return self._generations.get(client) is client.join_generation

    def recipients(self, changes: ChangePage) -> Counter[FeedClient]:
        """Return the clients that may receive these changes, with their maximum number of rows."""
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
    """Return the filter of a live client."""
    assert client.subscription is not None, "a live client has a subscription"
    return client.subscription.selection


def split_pages(changes: ChangePage, shares: Collection[int], most: int) -> Iterable[ChangePage]:
    """Split the changes into pages of at most `most` rows if a client may receive more.

    Each page is the same as a shorter page of the read model.
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


class ConnectionRegistry:
    """Feed clients of one process, and the position up to which the live ones have all rows.

    A client is *live* when it has every row up to `position`; only live clients take part in ticks.
    A client that has just subscribed, or reads too slowly, is behind, and catches up by itself.
    """

    def __init__(self, limits: FeedLimits) -> None:
        self.clients: set[FeedClient] = set()
        self.live: set[FeedClient] = set()
        self.unauthenticated = 0  # connections before their first message
        self.has_live = asyncio.Event()
        self.is_empty = asyncio.Event()
        self.is_empty.set()
        self.closing = False
        self.epoch = ""
        self.position = 0
        self.attempts_position = 0  # the end of the last complete tick; see ChangePage.since
        self._limits = limits
        self._connection_counts: Counter[str] = Counter()  # by the name of their principal
        self._live_set: LiveSet | None = None

    def add(self, client: FeedClient) -> None:
        """Register the client. Raises ConnectionClosed beyond the limit, or at shutdown."""
        if self.closing:
            raise ConnectionClosed(CloseCode.RESTARTING, "the server is restarting")
        self._check_limit(client.principal.name)
        self.clients.add(client)
        self._connection_counts[client.principal.name] += 1
        self.is_empty.clear()

    def rename(self, client: FeedClient, principal: Principal) -> None:
        """Change the client's principal. Raises ConnectionClosed beyond its limit."""
        if client.principal.name != principal.name:
            self._check_limit(principal.name)
            if client in self.clients:
                self._release(client.principal.name)
                self._connection_counts[principal.name] += 1
        client.principal = principal

    def _check_limit(self, name: str) -> None:
        if self._connection_counts[name] >= self._limits.max_connections:
            reason = f"{self._connection_counts[name]} are connected as {name}, which is the most"
            raise ConnectionClosed(CloseCode.TOO_MANY_SOCKETS, reason)

    def _release(self, name: str) -> None:
        self._connection_counts[name] -= 1
        if not self._connection_counts[name]:
            del self._connection_counts[name]

    def buffer_limit(self, client: FeedClient, buffer: int) -> int:
        """Return the most bytes to buffer: `buffer`, or a fair share for the principal if less."""
        held = self._connection_counts[client.principal.name] or 1
        return min(buffer, self._limits.max_principal_buffer // held)

    def remove(self, client: FeedClient) -> None:
        """Remove the client."""
        self.leave(client)
        if client in self.clients:
            self.clients.remove(client)
            self._release(client.principal.name)
        if not self.clients:
            self.is_empty.set()

    def join(self, client: FeedClient) -> bool:
        """Make the client live; return False if the live clients have advanced beyond it."""
        if not self.live:
            self.epoch = client.progress.epoch or ""
            self.position = self.attempts_position = client.progress.position
        elif client.progress.position < self.position:
            return False
        client.join_generation = object()
        self.live.add(client)
        self._live_set = None
        self.has_live.set()
        return True

    def leave(self, client: FeedClient) -> None:
        """Take the client out of the ticks."""
        if client in self.live:
            self.live.remove(client)
            self._live_set = None
        if not self.live:
            self.has_live.clear()

    def live_set(self) -> LiveSet:
        """Return the current live clients."""
        if self._live_set is None:
            self._live_set = LiveSet(self.live)
        return self._live_set

    def fall_behind(self, client: FeedClient) -> None:
        """Take a live client out of the ticks until its buffer has drained and it has caught up."""
        if client in self.live:
            self.leave(client)
            client.behind.set()

    def idle_advance(self, client: FeedClient) -> ChangePage | None:
        """Return an empty page that advances an idle live client; None if it is up to date."""
        after = client.progress.position
        if client not in self.live or not after < self.position == self.attempts_position:
            return None
        return ChangePage(self.epoch, after, after, self.position, self.position, more=False)
