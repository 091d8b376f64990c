"""From what a client asks to follow to what it may see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal
from uuid import UUID

import msgspec

from application.ports.feed import Selection
from application.ports.keys import Principal
from interfaces.feed.messages import Error, Subscribe
from interfaces.feed.place import Place, resumed

UNKNOWN = "there is no such batch, or not yet; should it be started, it will appear here"


class Subscription(msgspec.Struct, frozen=True):
    """One request to follow, settled: replaced as a whole by the next one.

    `first` are the frames that answer it before any rows, which come once they reflect `least`.
    """

    selection: Selection
    place: Place
    first: tuple[msgspec.Struct, ...] = ()
    asked: frozenset[UUID] = frozenset()
    least: int | Literal["latest"] = 0


def settle(message: Subscribe, principal: Principal) -> Subscription:
    """What this principal follows from now on.

    A batch that does not exist yet stays part of it. What belongs to another owner does too, and
    never shows: every row is compared with the owner.
    """
    place, reset = resumed(message.after)
    first: list[msgspec.Struct] = [reset] if reset else []
    least = message.min_position or 0
    if message.batches == "*":
        limited = None if principal.batch is None else frozenset({principal.batch})
        return Subscription(Selection(principal.sees, limited), place, tuple(first), least=least)
    asked: set[UUID] = set()
    for text in message.batches:
        id = _parsed(text)
        if id is None or principal.batch not in (None, id):
            first.append(unknown(text))
        else:
            asked.add(id)
    ids = frozenset(asked)
    return Subscription(Selection(principal.sees, ids, ids), place, tuple(first), ids, least)


def unknown(batch: str) -> Error:
    """The one answer for a batch that is not there, whatever the cause."""
    return Error("unknown_batch", UNKNOWN, batch[:64])


def unknown_among(asked: frozenset[UUID], known: Iterable[UUID]) -> list[Error]:
    """An error for each batch asked for that cannot be seen, in a stable order."""
    return [unknown(str(id)) for id in sorted(asked - frozenset(known))]


def _parsed(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
