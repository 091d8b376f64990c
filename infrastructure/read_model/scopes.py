"""Which streams a history is about, said in two ways: as a list, and as a test."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
from sqlalchemy import ColumnElement, CompoundSelect, exists, or_, select, union_all

from infrastructure.read_model.tables import batches, uploads

Streams: TypeAlias = CompoundSelect[tuple[UUID]]


class Scope(msgspec.Struct, frozen=True):
    """`streams(after)` lists those with events beyond a position; `includes` tests one of any."""

    streams: Callable[[int], Streams]
    includes: Callable[[ColumnElement[Any]], ColumnElement[bool]]


def of_batch(id: UUID) -> Scope:
    """The stream of a batch and those of its uploads."""

    def streams(after: int) -> Streams:
        return union_all(
            select(batches.c.id).where(batches.c.id == id, batches.c.position > after),
            select(uploads.c.id).where(uploads.c.batch == id, uploads.c.position > after),
        )

    def includes(stream: ColumnElement[Any]) -> ColumnElement[bool]:
        its = exists().where(uploads.c.id == stream, uploads.c.batch == id)
        return or_(stream == id, its)

    return Scope(streams, includes)


def of_owner(owner: str) -> Scope:
    """The streams of every batch of an owner."""

    def streams(after: int) -> Streams:
        its = uploads.join(batches, batches.c.id == uploads.c.batch)
        return union_all(
            select(batches.c.id).where(batches.c.owner == owner, batches.c.position > after),
            select(uploads.c.id)
            .select_from(its)
            .where(batches.c.owner == owner, uploads.c.position > after),
        )

    def includes(stream: ColumnElement[Any]) -> ColumnElement[bool]:
        return or_(
            exists().where(uploads.c.id == stream, uploads.c.owner == owner),
            exists().where(batches.c.id == stream, batches.c.owner == owner),
        )

    return Scope(streams, includes)
