"""Projection of events to row changes of the read model: a pure fold, without a single read."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, cast
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.projected_columns import (
    Columns,
    attempt_columns,
    batch_columns,
    upload_columns,
)
from domain.batch.events import BATCH_EVENTS, BatchStarted
from domain.ids import is_partial_upload
from domain.upload.events import (
    UPLOAD_EVENTS,
    AttemptStarted,
    UploadErased,
    UploadEvent,
    UploadRegistered,
    UploadRejected,
)

ROWS_REVISION = 6
"""Raise it if the rows of existing events change."""

VERSION = ROWS_REVISION + len(BATCH_EVENTS) + len(UPLOAD_EVENTS)
"""Version of the rows. It also rises with every new event type, since no type is ever removed.

A database whose rows have an earlier version is rebuilt from the log at the next start. So rows of
a version that skipped events of unknown types are replaced when a version starts that knows them.
"""

Table: TypeAlias = Literal["batches", "uploads", "attempts"]
Key: TypeAlias = UUID | tuple[UUID, int]
"""Of a batch or upload its id, of an attempt its upload and number."""

_UPLOAD_EVENTS = frozenset(UPLOAD_EVENTS)
_CREATING = frozenset({UploadRegistered, UploadRejected})


class Change(msgspec.Struct, frozen=True, gc=False):
    """Columns to assign in one row, with those of its key; `creates` if the event creates the row.

    It shares nothing mutable with the event or with any other change.
    """

    table: Table
    key: Key
    columns: Columns
    creates: bool = False


def row_changes(recorded: RecordedEvent) -> tuple[Change, ...]:
    """Return the row changes of one event.

    Columns are assigned from this event alone, never incremented and never read: applying
    an event twice, or several at once, leads to the same rows.
    """
    event = recorded.event
    if is_partial_upload(recorded.stream):  # only the upload it is concatenated into has a row
        return ()
    if type(event) in _UPLOAD_EVENTS:  # as nearly all are, and a rebuild meets millions
        return _of_upload(recorded, cast("UploadEvent", event))
    if isinstance(event, BATCH_EVENTS):
        creates = isinstance(event, BatchStarted)
        return (_change("batches", recorded, batch_columns(event), creates),)
    return ()  # webhooks, keys, sign-ins and erasures have no rows here, unknown types neither


def _of_upload(recorded: RecordedEvent, event: UploadEvent) -> tuple[Change, ...]:
    creates = type(event) in _CREATING
    upload = _change("uploads", recorded, upload_columns(event), creates)
    if isinstance(event, UploadErased):
        erased = (_attempt(recorded, n, {"message": None}) for n in range(1, event.attempts + 1))
        return (upload, *erased)
    attempt = attempt_columns(event)
    if attempt is None:
        return (upload,)
    return upload, _attempt(recorded, *attempt)


def _change(table: Table, recorded: RecordedEvent, columns: Columns, creates: bool) -> Change:
    stamped = {
        **columns,
        "id": recorded.stream,
        "updated_at": recorded.event.at,
        "version": recorded.version,
        "position": recorded.position,
    }
    return Change(table, recorded.stream, stamped, creates)


def _attempt(recorded: RecordedEvent, number: int, columns: Columns) -> Change:
    stamped = {
        **columns,
        "upload": recorded.stream,
        "number": number,
        "position": recorded.position,
    }
    begins = isinstance(recorded.event, AttemptStarted)
    return Change("attempts", (recorded.stream, number), stamped, begins)


MergedColumns: TypeAlias = dict[str, Any]
"""Columns of one row as merged so far; owned by the fold and never shared."""


class RowChanges(msgspec.Struct):
    """Columns to insert and to update in one table, by row."""

    created: dict[Key, MergedColumns] = msgspec.field(default_factory=dict)
    updated: dict[Key, MergedColumns] = msgspec.field(default_factory=dict)


class FoldedChanges(msgspec.Struct):
    """Row changes of consecutive events, merged by row, and the position of the last event."""

    position: int = 0
    tables: dict[Table, RowChanges] = msgspec.field(
        default_factory=lambda: {
            "batches": RowChanges(),
            "uploads": RowChanges(),
            "attempts": RowChanges(),
        }
    )


def fold_changes(events: Iterable[RecordedEvent]) -> FoldedChanges:
    """Merge the changes of the events by row: the later of two assignments wins.

    Every row is merged into a mapping made here: merging into the columns of a change could write
    into an object that rows of other owners share (docs/decisions/0025).
    """
    folded = FoldedChanges()
    tables = folded.tables
    for recorded in events:
        folded.position = recorded.position
        for change in row_changes(recorded):
            rows, key = tables[change.table], change.key
            if change.creates:
                rows.created[key] = dict(change.columns)
            elif (merged := rows.created.get(key) or rows.updated.get(key)) is not None:
                merged.update(change.columns)
            else:
                rows.updated[key] = dict(change.columns)
    return folded
