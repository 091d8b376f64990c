"""What one event changes, in which rows."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast, get_args
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.projection.attempts import attempt_columns
from application.projection.batches import BATCH_EVENTS, batch_columns
from application.projection.columns import Columns
from application.projection.uploads import upload_columns
from domain.batch.events import BatchStarted
from domain.ids import is_partial_upload
from domain.upload.events import (
    AttemptStarted,
    UploadErased,
    UploadEvent,
    UploadRegistered,
    UploadRejected,
)

VERSION = 5

Table: TypeAlias = Literal["batches", "uploads", "attempts"]
Key: TypeAlias = UUID | tuple[UUID, int]
"""Of a batch or upload its id, of an attempt its upload and number."""

_OF_UPLOADS = frozenset(get_args(UploadEvent))
_CREATING = frozenset({UploadRegistered, UploadRejected})


class Change(msgspec.Struct, frozen=True, gc=False):
    """Columns to assign in one row, those of its key included; `creates`: the row begins here.

    Nothing mutable in it is shared with the event, or with any other change.
    """

    table: Table
    key: Key
    columns: Columns
    creates: bool = False


def changes_of(recorded: RecordedEvent) -> tuple[Change, ...]:
    """The rows one event changes.

    Columns are assigned from this event alone, never incremented and never read: applying
    an event again, or many at once, leaves the rows as they should be.
    """
    event = recorded.event
    if is_partial_upload(
        recorded.stream
    ):  # it has no row: the upload that it is joined into has one
        return ()
    if type(event) in _OF_UPLOADS:  # as nearly all are, and a rebuild meets millions
        return _of_upload(recorded, cast("UploadEvent", event))
    if isinstance(event, BATCH_EVENTS):
        creates = isinstance(event, BatchStarted)
        return (_change("batches", recorded, batch_columns(event), creates),)
    return ()  # of webhooks, whose sender keeps their rows


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
