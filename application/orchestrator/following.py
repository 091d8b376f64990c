"""From events to what the orchestrator knows: each event changes its upload or its batch once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeAlias, get_args
from uuid import UUID

import msgspec

from application.append import RecordedEvent
from application.orchestrator.members import Followed, Member
from domain.batch.events import BatchEvent, BatchResumed, BatchRetryRequested
from domain.ids import is_partial_upload
from domain.upload.events import AttemptFailed, UploadEvent, UploadRegistered, UploadRejected

_UPLOAD: tuple[type[UploadEvent], ...] = get_args(UploadEvent)
_BATCH: tuple[type[BatchEvent], ...] = get_args(BatchEvent)

Members: TypeAlias = dict[UUID, Member]
Batches: TypeAlias = dict[UUID, Followed]


class OutOfStep(Exception):
    """An event does not follow the one that the orchestrator knows: it has lost its place."""


class Changes(msgspec.Struct):
    """What events came to: rows to save, uploads to try again later, whether work was resumed.

    `members` and `batches` hold only what changed; the failed uploads of the batches in
    `again` are to be processed again.
    """

    members: Members = msgspec.field(default_factory=dict)
    batches: Batches = msgspec.field(default_factory=dict)
    retries: set[UUID] = msgspec.field(default_factory=set)
    again: set[UUID] = msgspec.field(default_factory=set)
    resumed: bool = False


def streams_of(events: Iterable[RecordedEvent]) -> tuple[set[UUID], set[UUID]]:
    """The uploads and the batches that these events are about."""
    uploads: set[UUID] = set()
    batches: set[UUID] = set()
    for recorded in events:
        if is_partial_upload(recorded.stream):
            continue
        if isinstance(recorded.event, _UPLOAD):
            uploads.add(recorded.stream)
            if isinstance(recorded.event, UploadRegistered | UploadRejected):
                batches.add(recorded.event.batch)
        elif isinstance(recorded.event, _BATCH):
            batches.add(recorded.stream)
    return uploads, batches


def follow(
    events: Iterable[RecordedEvent],
    members: Mapping[UUID, Member],
    batches: Mapping[UUID, Followed],
) -> Changes:
    """What is new, given what is known of the streams concerned.

    The orchestrator meets its own events again; what it knows already changes nothing. A part
    of an upload is nothing to count or process: only the upload it is joined into is.
    Raises OutOfStep.
    """
    changes = Changes()
    for recorded in events:
        if is_partial_upload(recorded.stream):
            continue
        if isinstance(recorded.event, _UPLOAD):
            _follow_upload(changes, recorded, recorded.event, members, batches)
        elif isinstance(recorded.event, _BATCH):
            _follow_batch(changes, recorded, recorded.event, batches)
    return changes


def _follow_upload(
    changes: Changes,
    recorded: RecordedEvent,
    event: UploadEvent,
    members: Mapping[UUID, Member],
    batches: Mapping[UUID, Followed],
) -> None:
    id = recorded.stream
    known = changes.members.get(id) or members.get(id)
    if not _is_new(recorded, known.version if known else 0):
        return
    member = known.evolve(event) if known else Member.begin(id, event)
    changes.members[id] = member
    batch = changes.batches.get(member.batch) or batches.get(member.batch)
    if batch is None:
        raise OutOfStep(f"upload {id} belongs to the unknown batch {member.batch}")
    changes.batches[member.batch] = batch.touched(event.at)
    changes.retries.discard(id)
    if isinstance(event, AttemptFailed) and event.retry_at is not None:
        changes.retries.add(id)


def _follow_batch(
    changes: Changes, recorded: RecordedEvent, event: BatchEvent, batches: Mapping[UUID, Followed]
) -> None:
    id = recorded.stream
    known = changes.batches.get(id) or batches.get(id)
    if not _is_new(recorded, known.version if known else 0):
        return
    changes.batches[id] = known.evolve(event) if known else Followed.begin(id, event)
    changes.resumed |= isinstance(event, BatchResumed)
    if isinstance(event, BatchRetryRequested):
        changes.again.add(id)


def _is_new(recorded: RecordedEvent, known: int) -> bool:
    if recorded.version > known + 1:
        raise OutOfStep(
            f"stream {recorded.stream} has version {recorded.version} after {known}, "
            f"at position {recorded.position}"
        )
    return recorded.version > known
