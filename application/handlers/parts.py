"""Commands to parts: pieces of a file that come by themselves, and are joined into an upload."""

from __future__ import annotations

from application.commands import JoinPart, RegisterPart
from application.envelope import one
from application.handlers.deciding import Context, Decided, decide_upload
from application.ports.event_log import EventLog
from domain.errors import Faulty
from domain.file import FileDeclaration, faults_of
from domain.upload.aggregate import Upload
from domain.upload.registration import register_part as registration_of_part


async def register_part(log: EventLog, command: RegisterPart, context: Context) -> Decided[Upload]:
    """Raises Faulty, NotFound, NotNow where the batch is not open, Conflict, Unavailable."""
    if command.batch is not None:
        (await log.batch(command.batch)).require_open()
    file = FileDeclaration(path=f"{command.id}.part", size=command.size, metadata=command.metadata)
    if faults := tuple(faults_of(file)):
        raise Faulty(*faults)
    batch = command.batch or command.id
    events = registration_of_part(command.owner, batch, file, at=context.at, by=context.by)
    appended = await log.append(one(command.id, 0, *events, cause=context.cause))
    return Decided(Upload.begin(command.id, events[0]), appended.position)


async def join_part(log: EventLog, command: JoinPart, context: Context) -> Decided[Upload]:
    """Raises NotFound, NotNow, Busy, Unavailable."""
    return await decide_upload(
        log, command.part, lambda part: part.join(at=context.at, by=context.by), context
    )
