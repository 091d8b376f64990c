"""Commands to a batch: start, seal, pause, resume, retry, prioritize, cancel."""

from __future__ import annotations

from unicodedata import normalize
from uuid import UUID

import msgspec

from application.commands import (
    CancelBatch,
    PauseBatch,
    PrioritizeBatch,
    ResumeBatch,
    RetryBatch,
    SealBatch,
    StartBatch,
)
from application.envelope import Append, Write
from application.errors import Conflict, KeyReused
from application.handlers.deciding import Context, Decided, decide_batch
from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch
from domain.batch.events import BatchEvent, BatchStarted
from domain.errors import Fault, Faulty
from domain.file import FileDeclaration, control_character, faults_of, metadata_problem
from domain.ids import upload_id_for
from domain.upload.registration import register

MAX_LABEL = 200


class StartedBatch(msgspec.Struct, frozen=True):
    """The batch after the command; `created` is False where the key was answered before."""

    batch: Batch
    uploads: tuple[UUID, ...]
    created: bool
    position: int


async def start_batch(log: EventLog, command: StartBatch, context: Context) -> StartedBatch:
    """All or nothing: one fault in the manifest and no batch is started.

    Raises Faulty, KeyReused, Unavailable.
    """
    if faults := _faults(command):
        raise Faulty(*faults)
    started = _started(command, context)
    batch = Batch.begin(command.id, started)
    writes: list[Write] = []
    own: list[BatchEvent] = [started]
    for file in command.files:
        upload, events = register(batch, file, log.id_secret, at=context.at, by=context.by)
        writes.append(Write(upload, 0, events))
    size = sum(file.size or 0 for file in command.files)
    for event in batch.add_uploads(len(command.files), size, at=context.at, by=context.by):
        batch, own = batch.evolve(event), [*own, event]
    for event in batch.seal(at=context.at, by=context.by) if command.seal else ():
        batch, own = batch.evolve(event), [*own, event]
    append = Append((Write(command.id, 0, tuple(own)), *writes), cause=context.cause)
    try:
        appended = await log.append(append)
    except Conflict:
        return await _known(log, command)
    return StartedBatch(batch, tuple(write.stream for write in writes), True, appended.position)


async def seal_batch(log: EventLog, command: SealBatch, context: Context) -> Decided[Batch]:
    return await decide_batch(
        log, command.batch, lambda batch: batch.seal(at=context.at, by=context.by), context
    )


async def pause_batch(log: EventLog, command: PauseBatch, context: Context) -> Decided[Batch]:
    return await decide_batch(
        log, command.batch, lambda batch: batch.pause(at=context.at, by=context.by), context
    )


async def resume_batch(log: EventLog, command: ResumeBatch, context: Context) -> Decided[Batch]:
    return await decide_batch(
        log, command.batch, lambda batch: batch.resume(at=context.at, by=context.by), context
    )


async def retry_batch(log: EventLog, command: RetryBatch, context: Context) -> Decided[Batch]:
    """Asks for it; the orchestrator then retries each failed upload."""
    return await decide_batch(
        log, command.batch, lambda batch: batch.request_retry(at=context.at, by=context.by), context
    )


async def prioritize_batch(
    log: EventLog, command: PrioritizeBatch, context: Context
) -> Decided[Batch]:
    return await decide_batch(
        log,
        command.batch,
        lambda batch: batch.prioritize(command.priority, at=context.at, by=context.by),
        context,
    )


async def cancel_batch(log: EventLog, command: CancelBatch, context: Context) -> Decided[Batch]:
    """Calls the batch off; the orchestrator then cancels each unfinished upload."""
    return await decide_batch(
        log,
        command.batch,
        lambda batch: batch.cancel(command.reason, at=context.at, by=context.by),
        context,
    )


async def _known(log: EventLog, command: StartBatch) -> StartedBatch:
    batch = await log.batch(command.id)
    if batch.fingerprint != command.fingerprint:
        raise KeyReused("this Idempotency-Key started another batch; send a new key")
    return StartedBatch(batch, (), False, await _position_of_start(log, command))


async def _position_of_start(log: EventLog, command: StartBatch) -> int:
    """The position that the first request was answered with: of the last event it recorded."""
    if command.files:
        id, version = upload_id_for(command.id, command.files[-1].path, log.id_secret), 1
    else:
        id, version = command.id, 2 if command.seal else 1
    recorded = await log.stream(id, limit=version)
    return recorded[-1].position if recorded else 0


def _started(command: StartBatch, context: Context) -> BatchStarted:
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


def _faults(command: StartBatch) -> list[Fault]:
    faults = []
    if len(command.label) > MAX_LABEL or control_character(command.label):
        faults.append(Fault("label", f"must be at most {MAX_LABEL} printable characters"))
    if problem := metadata_problem(command.metadata):
        faults.append(Fault("metadata", problem))
    for index, file in enumerate(command.files):
        faults.extend(faults_of(file, at=f"files/{index}/"))
    return faults + repeated_paths(command.files)


def repeated_paths(files: tuple[FileDeclaration, ...]) -> list[Fault]:
    """A fault for every path that an earlier file has taken."""
    first: dict[str, int] = {}
    paths = [normalize("NFC", file.path) for file in files]
    return [
        Fault(f"files/{index}/path", f"is the same as that of files/{first[path]}")
        for index, path in enumerate(paths)
        if first.setdefault(path, index) != index
    ]
