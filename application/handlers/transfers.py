"""Commands to an upload: its bytes arrive, or people change their minds about it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from application.commands import (
    CancelUpload,
    DeclareSize,
    InterruptTransfer,
    ProgressTransfer,
    ReleaseUpload,
    ReportLoss,
    RetryUpload,
)
from application.envelope import Append, Unless, Write
from application.errors import Busy, Conflict
from application.handlers.deciding import TRIES, Context, Decided, decide_upload
from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch
from domain.batch.events import COMPLETING
from domain.event import Event
from domain.upload.aggregate import Upload


async def declare_size(log: EventLog, command: DeclareSize, context: Context) -> Decided[Upload]:
    return await decide_upload(
        log,
        command.upload,
        lambda upload: upload.declare_size(command.size, at=context.at, by=context.by),
        context,
    )


async def progress_transfer(
    log: EventLog, command: ProgressTransfer, context: Context
) -> Decided[Upload]:
    """Records how far the bytes are, and with `complete` that they are all here."""

    def decide(upload: Upload) -> tuple[Event, ...]:
        progressed = upload.progress_transfer(command.received, at=context.at, by=context.by)
        if not command.complete:
            return progressed
        for event in progressed:
            upload = upload.evolve(event)
        received = upload.receive(command.received, command.blob, at=context.at, by=context.by)
        return (*progressed, *received)

    return await decide_upload(log, command.upload, decide, context, fresh=False)


async def interrupt_transfer(
    log: EventLog, command: InterruptTransfer, context: Context
) -> Decided[Upload]:
    return await decide_upload(
        log,
        command.upload,
        lambda upload: upload.interrupt_transfer(
            command.received, command.reason, at=context.at, by=context.by
        ),
        context,
        fresh=False,
    )


async def report_loss(log: EventLog, command: ReportLoss, context: Context) -> Decided[Upload]:
    return await decide_upload(
        log,
        command.upload,
        lambda upload: upload.report_loss(command.stored, at=context.at, by=context.by),
        context,
    )


async def cancel_upload(log: EventLog, command: CancelUpload, context: Context) -> Decided[Upload]:
    return await decide_upload(
        log,
        command.upload,
        lambda upload: upload.cancel(command.reason, at=context.at, by=context.by),
        context,
    )


async def retry_upload(log: EventLog, command: RetryUpload, context: Context) -> Decided[Upload]:
    """Process a failed upload again; the verdict on its batch ends at the same moment."""
    return await _reopening(
        log,
        command.upload,
        lambda upload: upload.request_retry(at=context.at, by=context.by),
        lambda batch: batch.reopen_for_retry(at=context.at, by=context.by),
        context,
    )


async def release_upload(
    log: EventLog, command: ReleaseUpload, context: Context
) -> Decided[Upload]:
    """Complete a quarantined upload; the verdict on its batch ends at the same moment."""
    return await _reopening(
        log,
        command.upload,
        lambda upload: upload.release(command.reason, at=context.at, by=context.by),
        lambda batch: batch.reopen_for_release(at=context.at, by=context.by),
        context,
    )


async def _reopening(
    log: EventLog,
    id: UUID,
    decide: Callable[[Upload], tuple[Event, ...]],
    reopen: Callable[[Batch], tuple[Event, ...]],
    context: Context,
) -> Decided[Upload]:
    """Record a decision on an upload together with the end of the verdict on its batch.

    If the orchestrator reopened the batch later instead, a read in between would return the
    outdated verdict. Raises NotFound, Refused, Busy, Unavailable.
    """
    for _ in range(TRIES):
        log.forget(id)
        upload = await log.upload(id)
        events = decide(upload)
        log.forget(upload.batch)
        batch = await log.batch(upload.batch)
        writes: tuple[Write, ...] = (Write(id, upload.version, events, upload.owner),)
        unless: tuple[Unless, ...] = ()
        if reopened := reopen(batch):
            writes = (*writes, Write(batch.id, batch.version, reopened, batch.owner))
        else:  # it must not have completed meanwhile; that it made progress does not matter
            unless = (Unless(batch.id, batch.version, COMPLETING),)
        append = Append(writes, unless, context.cause, context.answer)
        try:
            appended = await log.append(append)
        except Conflict:
            continue
        for event in events:
            upload = upload.evolve(event)  # type: ignore[arg-type]
        return Decided(upload, appended.position)
    raise Busy(f"{id} is changing too fast; try again")
