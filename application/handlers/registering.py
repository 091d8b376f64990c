"""Files join a batch: by list, one by one, or alone."""

from __future__ import annotations

from typing import TypeAlias
from unicodedata import is_normalized
from uuid import UUID

import msgspec

from application.commands import AddUploads, RegisterUpload, UploadAlone
from application.envelope import Append, Unless, Write
from application.errors import Busy, Conflict
from application.handlers.deciding import TRIES, Context
from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch
from domain.batch.events import CLOSING, BatchSealed, BatchStarted
from domain.errors import Faulty, NotNow
from domain.file import FileDeclaration, faults_of, printable
from domain.ids import unnormalised_upload_id_for, upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.events import UploadEvent
from domain.upload.registration import register, reject


class RegisteredUpload(msgspec.Struct, frozen=True):
    """The upload after the command; `created` is False where the batch knew its path."""

    upload: Upload
    created: bool
    position: int


class AddedFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one file of a list: `status` is added, known or rejected."""

    path: str
    upload: UUID
    status: str
    code: str | None = None
    message: str | None = None


class AddedUploads(msgspec.Struct, frozen=True):
    """One entry for each file of the list, in its order."""

    files: tuple[AddedFile, ...]
    position: int


async def add_uploads(log: EventLog, command: AddUploads, context: Context) -> AddedUploads:
    """Sound files join, known ones stay as they are, the others are rejected, on record.

    Raises NotFound, NotNow when the batch is not open, Busy, Unavailable.
    """
    for _ in range(TRIES):
        batch = await log.batch(command.batch)
        try:
            batch.require_open()
            judged = [
                _judge(batch, file, context, command, log.id_secret) for file in command.files
            ]
        except NotNow:
            log.forget(batch.id)
            (await log.batch(batch.id)).require_open()
            continue
        judged = [await _as_spelled(log, batch, one) for one in judged]
        known = await log.versions([stream for stream, _, _ in judged])
        added, writes = _sorted_out(judged, known)
        if not writes:
            return AddedUploads(tuple(added), 0)
        try:
            appended = await log.append(_joining(batch, writes, context))
        except Conflict:
            log.forget(batch.id)
            continue
        return AddedUploads(tuple(added), appended.position)
    raise Busy(f"batch {command.batch} is changing too fast; try again")


async def register_upload(
    log: EventLog, command: RegisterUpload, context: Context
) -> RegisteredUpload:
    """Raises Faulty, NotFound, NotNow, Busy, Unavailable."""
    if faults := tuple(faults_of(command.file)):
        raise Faulty(*faults)
    if earlier := await upload_of_spelling(log, command.batch, command.file.path):
        return await _known(log, earlier, command.file)
    for attempt in range(TRIES):
        if attempt:
            log.forget(command.batch)
        batch = await log.batch(command.batch)
        try:
            stream, events = register(
                batch, command.file, log.id_secret, at=context.at, by=context.by
            )
        except NotNow:
            stream = upload_id_for(command.batch, command.file.path, log.id_secret)
            if stream in await log.versions([stream]):
                return await _known(log, stream, command.file)
            if attempt:
                raise
            continue
        upload, events = _arrived(stream, events, command.received, command.blob, context)
        append = Append(
            (Write(stream, 0, events),),
            unless=(Unless(batch.id, batch.version, CLOSING),),
            cause=context.cause,
        )
        try:
            appended = await log.append(append)
        except Conflict as conflict:
            if conflict.stream == stream:
                return await _known(log, stream, command.file)
            continue
        return RegisteredUpload(upload, True, appended.position)
    raise Busy(f"batch {command.batch} is changing too fast; try again")


async def upload_of_spelling(log: EventLog, batch: UUID, path: str) -> UUID | None:
    """The upload that version 0.1 registered for a path that is not in NFC, by its old id."""
    if is_normalized("NFC", path):
        return None
    earlier = unnormalised_upload_id_for(batch, path, log.id_secret)
    return earlier if earlier in await log.versions([earlier]) else None


async def upload_alone(log: EventLog, command: UploadAlone, context: Context) -> RegisteredUpload:
    """The file, and a sealed batch for it, in one append. Raises Faulty, Unavailable."""
    if faults := tuple(faults_of(command.file)):
        raise Faulty(*faults)
    started = BatchStarted(
        at=context.at,
        by=context.by,
        owner=command.owner,
        label=printable(command.file.path),
        pipeline=command.pipeline,
        retry_policy=command.retry_policy,
    )
    batch = Batch.begin(command.id, started)
    stream, events = register(batch, command.file, log.id_secret, at=context.at, by=context.by)
    upload, events = _arrived(stream, events, command.received, command.blob, context)
    sealed = BatchSealed(at=context.at, by=context.by)
    writes = (Write(batch.id, 0, (started, sealed)), Write(stream, 0, events))
    appended = await log.append(Append(writes, cause=context.cause))
    return RegisteredUpload(upload, True, appended.position)


def _arrived(
    stream: UUID,
    events: tuple[UploadEvent, ...],
    received: int | None,
    blob: str | None,
    context: Context,
) -> tuple[Upload, tuple[UploadEvent, ...]]:
    """The upload with the bytes that came along with its registration.

    Of a file that came whole there is no progress to tell.
    """
    upload = Upload.begin(stream, events[0])
    if received is None or blob is None:
        return upload, events
    arrived = upload.receive(received, blob, at=context.at, by=context.by)
    for event in arrived:
        upload = upload.evolve(event)
    return upload, (*events, *arrived)


async def _known(log: EventLog, stream: UUID, file: FileDeclaration) -> RegisteredUpload:
    log.forget(stream)
    upload = await log.upload(stream)
    if None not in (file.size, upload.size) and file.size != upload.size:
        raise NotNow(f"{file.path} is in the batch already, with {upload.size} bytes")
    return RegisteredUpload(upload, False, 0)


_Judged: TypeAlias = tuple[UUID, tuple[UploadEvent, ...], AddedFile]


def _judge(
    batch: Batch, file: FileDeclaration, context: Context, command: AddUploads, secret: bytes
) -> _Judged:
    """The stream, event and answer for one file of a list."""
    code, message = "", ""
    if faults := tuple(faults_of(file)):
        code, message = "invalid", f"{faults[0].field} {faults[0].message}"
        file = FileDeclaration(path=printable(file.path))
    elif file.size is not None and file.size > command.max_size:
        code, message = "too_large", f"size must be at most {command.max_size} bytes"
    elif quota := command.without_room.get(file.path):
        code, message = "quota_exceeded", quota
    if not code:
        stream, events = register(batch, file, secret, at=context.at, by=context.by)
        return stream, events, AddedFile(file.path, stream, "added")
    stream, events = reject(batch, file, code, message, secret, at=context.at, by=context.by)
    return stream, events, AddedFile(file.path, stream, "rejected", code, message)


async def _as_spelled(log: EventLog, batch: Batch, one: _Judged) -> _Judged:
    """The same, at the upload that an earlier version registered for this spelling."""
    _, events, answer = one
    if answer.status != "added":
        return one
    earlier = await upload_of_spelling(log, batch.id, answer.path)
    return one if earlier is None else (earlier, events, answer)


def _sorted_out(
    judged: list[_Judged], known: dict[UUID, int]
) -> tuple[list[AddedFile], list[Write]]:
    """The answers, and the writes for those that are new to the batch and to the list."""
    added, writes, seen = [], [], set(known)
    for stream, events, answer in judged:
        if stream in seen and answer.status == "added":
            answer = AddedFile(answer.path, stream, "known")
        elif stream not in seen:
            writes.append(Write(stream, 0, events))
        seen.add(stream)
        added.append(answer)
    return added, writes


def _joining(batch: Batch, writes: list[Write], context: Context) -> Append:
    firsts = [Upload.begin(write.stream, write.events[0]) for write in writes]  # type: ignore[arg-type]
    joined = [upload for upload in firsts if not upload.state.ended]
    size = sum(upload.size or 0 for upload in joined)
    events = batch.add_uploads(len(joined), size, at=context.at, by=context.by)
    own = (Write(batch.id, None, events),) if events else ()
    return Append(
        (*own, *writes),
        unless=(Unless(batch.id, batch.version, CLOSING),),
        cause=context.cause,
        answer=context.answer,
    )
