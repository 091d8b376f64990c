"""Many events, one assignment per row: what a projector writes at once."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from application.envelope import Recorded
from application.projection.changes import Key, Table, changes_of
from application.projection.columns import Columns


class RowChanges(msgspec.Struct):
    """Rows of one table that begin, and rows that go on, each with its last assignments."""

    created: dict[Key, Columns] = msgspec.field(default_factory=dict)
    updated: dict[Key, Columns] = msgspec.field(default_factory=dict)


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


def fold(events: Iterable[Recorded]) -> Fold:
    """Merges the changes of the events row by row: of two assignments the later one stands."""
    folded = Fold()
    tables = folded.tables
    for recorded in events:
        folded.position = recorded.position
        for change in changes_of(recorded):
            rows, key = tables[change.table], change.key
            if change.creates:
                rows.created[key] = change.columns
                continue
            columns = rows.created.get(key)
            if columns is None:
                columns = rows.updated.setdefault(key, change.columns)
            columns.update(change.columns)
    return folded
