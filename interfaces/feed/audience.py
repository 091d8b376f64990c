"""Those who take part in the ticks, and who of them a change concerns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from uuid import UUID

from application.ports.feed import Changes, Selection
from interfaces.feed.client import FeedClient


class Audience:
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
            selection = selection_of(client)
            uploads_of |= selection.uploads_of
            if selection.batches is None:
                self._everything.append(client)
            for id in (selection.batches or frozenset()) | selection.uploads_of:
                self._by_batch[id].append(client)
        followed = None if self._everything else frozenset(self._by_batch)
        self.selection = Selection(None, followed, frozenset(uploads_of))
        """What all of them follow together, whoever owns it."""

    def includes(self, client: FeedClient) -> bool:
        """Whether the client has been in the ticks all the time."""
        return self._stays.get(client) is client.stay

    def concerned(self, changes: Changes) -> Counter[FeedClient]:
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


def selection_of(client: FeedClient) -> Selection:
    """What a live client follows."""
    assert client.subscription is not None, "nobody is live without a subscription"
    return client.subscription.selection


def in_parts(changes: Changes, shares: Collection[int], most: int) -> Iterable[Changes]:
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
        yield Changes(
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
