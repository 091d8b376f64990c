"""Time travel: rows as they were, folded in memory by the projection of the read model."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TypeAlias, TypeVar
from uuid import UUID

import msgspec

from application.activity import show_activity_then
from application.append import RecordedEvent
from application.errors import NotFound
from application.ports.event_log import EventLog
from application.projection import Key, RowChanges, fold_changes
from application.views import AttemptView, BatchView, UploadView

PAGE = 10_000  # events held in memory at a time

Moment: TypeAlias = int | datetime
"""A position in the log, or a time (UTC)."""

View = TypeVar("View", BatchView, UploadView, AttemptView)
Owned = TypeVar("Owned", BatchView, UploadView)


class Rows(msgspec.Struct):
    """The rows that follow from some events."""

    batches: dict[Key, BatchView] = msgspec.field(default_factory=dict)
    uploads: dict[Key, UploadView] = msgspec.field(default_factory=dict)
    attempts: dict[Key, AttemptView] = msgspec.field(default_factory=dict)

    def apply(self, events: Iterable[RecordedEvent]) -> None:
        """Takes in more events, which follow those taken before."""
        folded = fold_changes(events)
        _apply(folded.tables["batches"], self.batches, BatchView)
        _apply(folded.tables["uploads"], self.uploads, UploadView)
        _apply(folded.tables["attempts"], self.attempts, AttemptView)


def replay(events: Iterable[RecordedEvent]) -> Rows:
    """The rows that these events, from the first of each stream on, lead to."""
    rows = Rows()
    rows.apply(events)
    return rows


async def upload_as_of(log: EventLog, id: UUID, at: Moment, *, owner: str | None) -> UploadView:
    """The upload as its owner (None: anybody) saw it then.

    Raises NotFound if it was not there yet, or belongs to somebody else; Unavailable.
    """
    rows = await _rows_of(log, id, at)
    return _owned(rows.uploads.get(id), owner)


async def batch_as_of(
    log: EventLog, id: UUID, at: Moment, *, owner: str | None, now: datetime | None = None
) -> BatchView:
    """The batch, likewise, with what it was doing then; no moment is later than `now`."""
    rows = await _rows_of(log, id, at)
    batch = _owned(rows.batches.get(id), owner)
    then = await _time_of(log, at, batch, now)
    return show_activity_then(batch, then if now is None else min(then, now))


async def _time_of(log: EventLog, at: Moment, batch: BatchView, now: datetime | None) -> datetime:
    """The time of a moment; of a position, that of the event there, or of the next one."""
    if isinstance(at, datetime):
        return at
    if at == batch.position:
        return batch.updated_at
    events = await log.read(max(at - 1, 0), limit=1)
    if not events:  # beyond the end of the log
        return now or batch.updated_at
    return max(batch.updated_at, events[0].event.at)


async def _rows_of(log: EventLog, stream: UUID, at: Moment) -> Rows:
    position = at if isinstance(at, int) else await log.position_at(at)
    rows, version = Rows(), 0
    while events := await log.stream(stream, after=version, upto_position=position, limit=PAGE):
        rows.apply(events)
        version = events[-1].version
        if len(events) < PAGE:
            break
    return rows


def _apply(changes: RowChanges, rows: dict[Key, View], view: type[View]) -> None:
    for key, columns in changes.created.items():
        rows[key] = view(**columns)
    for key, columns in changes.updated.items():
        row = rows[key]
        for name, value in columns.items():
            setattr(row, name, value)


def _owned(row: Owned | None, owner: str | None) -> Owned:
    if row is None or owner not in (None, row.owner):
        raise NotFound("there was no such thing then")
    return row
