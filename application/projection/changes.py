"""What one event changes, in which rows."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast, get_args
from uuid import UUID

import msgspec

from application.envelope import Recorded
from application.projection.attempts import attempt_columns
from application.projection.batches import BATCH_EVENTS, batch_columns
from application.projection.columns import Columns
from application.projection.uploads import upload_columns
from domain.batch.events import BatchStarted
from domain.ids import is_part
from domain.upload.events import (
    AttemptStarted,
    UploadErased,
    UploadEvent,
    UploadRegistered,
    UploadRejected,
)

VERSION = 3

Table: TypeAlias = Literal["batches", "uploads", "attempts"]
Key: TypeAlias = UUID | tuple[UUID, int]
"""Of a batch or upload its id, of an attempt its upload and number."""

_OF_UPLOADS = frozenset(get_args(UploadEvent))
_CREATING = frozenset({UploadRegistered, UploadRejected})


class Change(msgspec.Struct, frozen=True, gc=False):
    """Columns to assign in one row, those of its key included; `creates`: the row begins here."""

    table: Table
    key: Key
    columns: Columns
    creates: bool = False


def changes_of(recorded: Recorded) -> tuple[Change, ...]:
    """The rows one event changes.

    Columns are assigned from this event alone, never incremented and never read: applying
    an event again, or many at once, leaves the rows as they should be.
    """
    event = recorded.event
    if is_part(recorded.stream):  # it has no row: the upload that it is joined into has one
        return ()
    if type(event) in _OF_UPLOADS:  # as nearly all are, and a rebuild meets millions
        return _of_upload(recorded, cast("UploadEvent", event))
    if isinstance(event, BATCH_EVENTS):
        creates = isinstance(event, BatchStarted)
        batch = Change("batches", recorded.stream, batch_columns(event), creates)
        return (_stamped(batch, recorded),)
    return ()  # of webhooks, whose sender keeps their rows


def _of_upload(recorded: Recorded, event: UploadEvent) -> tuple[Change, ...]:
    creates = type(event) in _CREATING
    upload = Change("uploads", recorded.stream, upload_columns(event), creates)
    if isinstance(event, UploadErased):
        erased = (_attempt(recorded, n, {"message": None}) for n in range(1, event.attempts + 1))
        return (_stamped(upload, recorded), *erased)
    attempt = attempt_columns(event)
    if attempt is None:
        return (_stamped(upload, recorded),)
    return _stamped(upload, recorded), _attempt(recorded, *attempt)


def _stamped(change: Change, recorded: Recorded) -> Change:
    columns = change.columns
    columns["id"] = recorded.stream
    columns["updated_at"] = recorded.event.at
    columns["version"] = recorded.version
    columns["position"] = recorded.position
    return change


def _attempt(recorded: Recorded, number: int, columns: Columns) -> Change:
    columns["upload"] = recorded.stream
    columns["number"] = number
    columns["position"] = recorded.position
    begins = isinstance(recorded.event, AttemptStarted)
    return Change("attempts", (recorded.stream, number), columns, begins)
