"""Commands to an upload: its bytes arrive, or people change their minds about it."""

from __future__ import annotations

from application.commands import (
    CancelUpload,
    DeclareSize,
    InterruptTransfer,
    ProgressTransfer,
    ReleaseUpload,
    ReportLoss,
    RetryUpload,
)
from application.handlers.deciding import Context, Decided, decide_upload
from application.ports.event_log import EventLog
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
    return await decide_upload(
        log,
        command.upload,
        lambda upload: upload.request_retry(at=context.at, by=context.by),
        context,
    )


async def release_upload(
    log: EventLog, command: ReleaseUpload, context: Context
) -> Decided[Upload]:
    return await decide_upload(
        log,
        command.upload,
        lambda upload: upload.release(command.reason, at=context.at, by=context.by),
        context,
    )
