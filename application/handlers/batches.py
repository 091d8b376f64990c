"""The handler that starts a batch, with its manifest.

Commands to an existing batch are executed by `application.handlers.execute`.
"""

from __future__ import annotations

from unicodedata import normalize
from uuid import UUID

import msgspec

from application.append import Append, StreamAppend
from application.commands import StartBatch
from application.errors import Conflict, IdempotencyKeyReused
from application.handlers.execute import CommandContext
from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch, label_error
from domain.batch.events import BatchEvent, BatchStarted
from domain.errors import FieldError, ValidationFailed
from domain.file import (
    FileDeclaration,
    metadata_error,
    validate_declaration,
)
from domain.ids import upload_id_for


class StartBatchResult(msgspec.Struct, frozen=True):
    """The batch after the command; `created` is False if its key had started it before."""

    batch: Batch
    uploads: tuple[UUID, ...]
    created: bool
    position: int


async def start_batch(
    log: EventLog, command: StartBatch, context: CommandContext
) -> StartBatchResult:
    """Start a batch with all files of its manifest, or none: one fault and nothing is recorded.

    Raises ValidationFailed, IdempotencyKeyReused, Unavailable.
    """
    if faults := _faults(command):
        raise ValidationFailed(*faults)
    started = _started_event(command, context)
    batch = Batch.begin(command.id, started)
    writes: list[StreamAppend] = []
    own: list[BatchEvent] = [started]
    for file in command.files:
        upload, events = batch.register_upload(file, log.id_secret, at=context.at, by=context.by)
        writes.append(StreamAppend(upload, 0, events))
    size = sum(file.size or 0 for file in command.files)
    for event in batch.add_uploads(len(command.files), size, at=context.at, by=context.by):
        batch, own = batch.evolve(event), [*own, event]
    for event in batch.seal(at=context.at, by=context.by) if command.seal else ():
        batch, own = batch.evolve(event), [*own, event]
    append = Append((StreamAppend(command.id, 0, tuple(own)), *writes), cause=context.cause)
    try:
        appended = await log.append(append)
    except Conflict:
        return await _load_started(log, command)
    return StartBatchResult(batch, tuple(write.stream for write in writes), True, appended.position)


async def _load_started(log: EventLog, command: StartBatch) -> StartBatchResult:
    batch = await log.batch(command.id)
    if batch.erased:  # and so is the fingerprint
        raise IdempotencyKeyReused("this Idempotency-Key started an erased batch; send a new key")
    if batch.fingerprint != command.fingerprint:
        raise IdempotencyKeyReused("this Idempotency-Key started another batch; send a new key")
    return StartBatchResult(batch, (), False, await _position_of_start(log, command))


async def _position_of_start(log: EventLog, command: StartBatch) -> int:
    """Return the position in the first response: that of the last event which it recorded."""
    if command.files:
        id, version = upload_id_for(command.id, command.files[-1].path, log.id_secret), 1
    else:
        id, version = command.id, 2 if command.seal else 1
    recorded = await log.stream(id, limit=version)
    return recorded[-1].position if recorded else 0


def _started_event(command: StartBatch, context: CommandContext) -> BatchStarted:
    return BatchStarted(
        at=context.at,
        by=context.by,
        owner=command.owner,
        label=command.label,
        pipeline=command.pipeline,
        retry_policy=command.retry_policy,
        priority=command.priority,
        failure_threshold=command.failure_threshold,
        notify=command.notify,
        metadata=command.metadata,
        fingerprint=command.fingerprint,
    )


def _faults(command: StartBatch) -> list[FieldError]:
    faults = []
    if problem := label_error(command.label):
        faults.append(FieldError("label", problem))
    if problem := metadata_error(command.metadata):
        faults.append(FieldError("metadata", problem))
    for index, file in enumerate(command.files):
        faults.extend(validate_declaration(file, at=f"files/{index}/"))
    return faults + duplicate_path_faults(command.files)


def duplicate_path_faults(files: tuple[FileDeclaration, ...]) -> list[FieldError]:
    """Return a fault for every path that an earlier file of the list has."""
    first: dict[str, int] = {}
    paths = [normalize("NFC", file.path) for file in files]
    return [
        FieldError(f"files/{index}/path", f"is the same as that of files/{first[path]}")
        for index, path in enumerate(paths)
        if first.setdefault(path, index) != index
    ]
