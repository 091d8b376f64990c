"""Opaque cursors: the place in an order after which the next page begins."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import TypeVar
from uuid import UUID

import msgspec

from application.ports.read_model import BadCursor


class AfterBatch(msgspec.Struct, frozen=True, array_like=True, tag="b"):
    """Batches come newest first."""

    started_at: datetime
    id: UUID


class AfterUpload(msgspec.Struct, frozen=True, array_like=True, tag="u"):
    """The uploads of a batch come in the order of their paths."""

    path: str
    id: UUID


Place = TypeVar("Place", AfterBatch, AfterUpload)


def to_cursor(place: AfterBatch | AfterUpload) -> str:
    return urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def from_cursor(cursor: str, kind: type[Place]) -> Place:
    """Raises BadCursor for anything that `to_cursor` did not give out for this kind."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        place = msgspec.json.decode(urlsafe_b64decode(padded), type=kind)
    except ValueError as error:  # of base64, of msgspec, or not ASCII
        raise BadCursor("the cursor was not given out by this query") from error
    if to_cursor(place) != cursor or "\0" in getattr(place, "path", ""):
        raise BadCursor("the cursor was not given out by this query")
    return place
