"""How far one client is, and which frame comes next: pure, so that every way can be tested."""

from __future__ import annotations

import msgspec

from application.ports.feed import Changes
from interfaces.feed.cursor import Cursor, parse
from interfaces.feed.messages import ChangesHead, Head, Reset, SnapshotHead


class Place(msgspec.Struct, frozen=True):
    """The client has everything up to `position`, of the read model `epoch`.

    `whole` is how far that holds for attempts, which come with their uploads: the end of the last
    frame that did not stop short, and so where a client that is cut resumes. `part` numbers the
    snapshot's next part; None once it is whole. The parts follow each other by position, so a row
    that changes meanwhile comes again in a later part: after the last one the client has exactly
    the rows of the moment at which that one was read.
    """

    epoch: str | None = None
    position: int = 0
    whole: int = 0
    part: int | None = 1

    @property
    def cursor(self) -> str | None:
        """What the client resumes with; None while its snapshot is not whole."""
        return str(Cursor(self.epoch or "", self.whole)) if self.part is None else None


START = Place()


def resumed(after: str | None) -> tuple[Place, Reset | None]:
    """The place a subscription begins at; the reset says why it is not the one asked for."""
    if after is None:
        return START, None
    if (cursor := parse(after)) is None:
        return START, Reset("unreadable")
    return Place(cursor.epoch, cursor.position, cursor.position, None), None


def refused(place: Place, changes: Changes) -> Reset | None:
    """Why rows read now cannot follow on what the client has; it must start again."""
    if place.epoch is None:
        return None
    if place.epoch != changes.epoch:
        return Reset("rebuilt")
    if place.position > changes.head:
        return Reset("ahead")
    return None


def advance(place: Place, changes: Changes) -> tuple[Head, Place]:
    """The head of the frame that carries these changes, and the place after it."""
    reached = Place(
        epoch=changes.epoch,
        position=changes.to,
        whole=place.whole if changes.more else changes.to,
        part=place.part + 1 if place.part and changes.more else None,
    )
    if place.part is not None:
        return SnapshotHead(place.part, changes.to, changes.more, reached.cursor), reached
    return ChangesHead(place.position, changes.to, changes.more, reached.cursor), reached
