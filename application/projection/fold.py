"""Many events, one assignment per row: what a projector writes at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from application.append import RecordedEvent
from application.projection.changes import Key, Table, changes_of

Merged: TypeAlias = dict[str, Any]
"""Columns of one row as merged so far; owned by the fold and never shared."""


class RowChanges(msgspec.Struct):
    """Rows of one table that begin, and rows that go on, each with its last assignments."""

    created: dict[Key, Merged] = msgspec.field(default_factory=dict)
    updated: dict[Key, Merged] = msgspec.field(default_factory=dict)


class Fold(msgspec.Struct):
    """What some consecutive events change; `position` is that of the last of them."""

    position: int = 0
    tables: dict[Table, RowChanges] = msgspec.field(
        default_factory=lambda: {
            "batches": RowChanges(),
            "uploads": RowChanges(),
            "attempts": RowChanges(),
        }
    )


def fold(events: Iterable[RecordedEvent]) -> Fold:
    """Merge the changes of the events row by row: of two assignments the later one stands.

    Every row is merged into a mapping made here. Merging into the columns of a change would write
    into whatever that change shares, and what one event of one owner left there would reach the
    rows of others (docs/decisions/0025-tenant-isolation-and-verification.md).
    """
    folded = Fold()
    tables = folded.tables
    for recorded in events:
        folded.position = recorded.position
        for change in changes_of(recorded):
            rows, key = tables[change.table], change.key
            if change.creates:
                rows.created[key] = dict(change.columns)
            elif (merged := rows.created.get(key) or rows.updated.get(key)) is not None:
                merged.update(change.columns)
            else:
                rows.updated[key] = dict(change.columns)
    return folded
