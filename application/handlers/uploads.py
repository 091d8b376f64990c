"""Handlers that begin uploads: by list, one by one, standalone, partial, and many received at once.

Commands to an existing upload are executed by `application.handlers.execute`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias
from unicodedata import is_normalized
from uuid import UUID

import msgspec

from application.append import Append, AppendCondition, StreamAppend, append_to_stream
from application.commands import (
    AddUploads,
    CreateStandaloneUpload,
    RegisterPartialUpload,
    RegisterUpload,
)
from application.errors import Conflict, TooManyConflicts
from application.handlers.execute import MAX_ATTEMPTS, CommandContext, CommandResult
from application.ports.event_log import EventLog
from domain.batch.aggregate import Batch
from domain.batch.events import CLOSING, BatchSealed, BatchStarted
from domain.errors import InvalidState, ValidationFailed
from domain.file import FileDeclaration, sanitize, validate_declaration
from domain.ids import unnormalised_upload_id_for, upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.events import UploadEvent


class RegisteredUpload(msgspec.Struct, frozen=True):
    """The upload after the command; `created` is False if the batch knew its path."""

    upload: Upload
    created: bool
    position: int


class FileResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """Result for one file of a list: `status` is added, known, received or rejected."""

    path: str
    upload: UUID
    status: str
    code: str | None = None
    message: str | None = None


class AddedUploads(msgspec.Struct, frozen=True):
    """One result for each file of the list, in its order."""

    files: tuple[FileResult, ...]
    position: int


class StoredFile(msgspec.Struct, frozen=True):
    """A file whose bytes are durable under `blob`; `known` is its upload if declared before."""

    file: FileDeclaration
    size: int
    blob: str
    known: Upload | None = None


class RejectedFile(msgspec.Struct, frozen=True):
    """A file that is not accepted: `code` for programs, `message` for people."""

    file: FileDeclaration
    code: str
    message: str

    def result(self, upload: UUID) -> FileResult:
        return FileResult(sanitize(self.file.path), upload, "rejected", self.code, self.message)


async def add_uploads(log: EventLog, command: AddUploads, context: CommandContext) -> AddedUploads:
    """Register valid files, leave known ones as they are, and record the rejection of others.

    Raises NotFound, InvalidState if the batch is not open, TooManyConflicts, Unavailable.
    """
    for _ in range(MAX_ATTEMPTS):
        batch = await log.batch(command.batch)
        try:
            batch.require_open()
            checked = [
                _check_file(batch, file, context, command, log.id_secret) for file in command.files
            ]
        except InvalidState:
            log.forget(batch.id)
            (await log.batch(batch.id)).require_open()
            continue
        checked = [await _with_known_spelling(log, batch, one) for one in checked]
        known = await log.versions([stream for stream, _, _ in checked])
        results, writes = _split_new(checked, known)
        if not writes:
            return AddedUploads(tuple(results), 0)
        try:
            appended = await log.append(_append_of_new_files(batch, writes, context))
        except Conflict:
            log.forget(batch.id)
            continue
        return AddedUploads(tuple(results), appended.position)
    raise TooManyConflicts(f"batch {command.batch} is changing too fast; try again")


async def register_upload(
    log: EventLog, command: RegisterUpload, context: CommandContext
) -> RegisteredUpload:
    """Register one file.

    Raises ValidationFailed, NotFound, InvalidState, TooManyConflicts, Unavailable.
    """
    if faults := tuple(validate_declaration(command.file)):
        raise ValidationFailed(*faults)
    if earlier := await find_unnormalised_upload(log, command.batch, command.file.path):
        return await _load_known(log, earlier, command.file)
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            log.forget(command.batch)
        batch = await log.batch(command.batch)
        try:
            stream, events = batch.register_upload(
                command.file, log.id_secret, at=context.at, by=context.by
            )
        except InvalidState:
            stream = upload_id_for(command.batch, command.file.path, log.id_secret)
            if stream in await log.versions([stream]):
                return await _load_known(log, stream, command.file)
            if attempt:
                raise
            continue
        upload, events = _with_received_bytes(
            stream, events, command.received, command.blob, context
        )
        append = Append(
            (StreamAppend(stream, 0, events),),
            conditions=(AppendCondition(batch.id, batch.version, CLOSING),),
            cause=context.cause,
        )
        try:
            appended = await log.append(append)
        except Conflict as conflict:
            if conflict.stream == stream:
                return await _load_known(log, stream, command.file)
            continue
        return RegisteredUpload(upload, True, appended.position)
    raise TooManyConflicts(f"batch {command.batch} is changing too fast; try again")


async def find_unnormalised_upload(log: EventLog, batch: UUID, path: str) -> UUID | None:
    """Return the upload that version 0.1 registered for a path that is not in NFC, if any."""
    if is_normalized("NFC", path):
        return None
    earlier = unnormalised_upload_id_for(batch, path, log.id_secret)
    return earlier if earlier in await log.versions([earlier]) else None


async def create_standalone_upload(
    log: EventLog, command: CreateStandaloneUpload, context: CommandContext
) -> RegisteredUpload:
    """Register a file and a sealed batch for it, in one append.

    Raises ValidationFailed, Unavailable.
    """
    if faults := tuple(validate_declaration(command.file)):
        raise ValidationFailed(*faults)
    started = BatchStarted(
        at=context.at,
        by=context.by,
        owner=command.owner,
        label=sanitize(command.file.path),
        pipeline=command.pipeline,
        retry_policy=command.retry_policy,
    )
    batch = Batch.begin(command.id, started)
    stream, events = batch.register_upload(
        command.file, log.id_secret, at=context.at, by=context.by
    )
    upload, events = _with_received_bytes(stream, events, command.received, command.blob, context)
    sealed = BatchSealed(at=context.at, by=context.by)
    writes = (StreamAppend(batch.id, 0, (started, sealed)), StreamAppend(stream, 0, events))
    appended = await log.append(Append(writes, cause=context.cause))
    return RegisteredUpload(upload, True, appended.position)


async def register_partial_upload(
    log: EventLog, command: RegisterPartialUpload, context: CommandContext
) -> CommandResult[Upload]:
    """Register a tus partial upload.

    Raises ValidationFailed, NotFound, InvalidState if the batch is not open, Conflict, Unavailable.
    """
    if command.batch is not None:
        (await log.batch(command.batch)).require_open()
    file = FileDeclaration(path=f"{command.id}.part", size=command.size, metadata=command.metadata)
    if faults := tuple(validate_declaration(file)):
        raise ValidationFailed(*faults)
    batch = command.batch or command.id
    events = Upload.register_partial(command.owner, batch, file, at=context.at, by=context.by)
    appended = await log.append(append_to_stream(command.id, 0, *events, cause=context.cause))
    return CommandResult(Upload.begin(command.id, events[0]), appended.position)


async def record_received_files(
    log: EventLog,
    batch: Batch,
    files: Sequence[StoredFile | RejectedFile],
    context: CommandContext,
) -> tuple[tuple[FileResult, ...], int]:
    """Record many files that were received or rejected, in one append.

    Return one result for each file, in their order, and the position of the append; 0 for none.
    All are recorded or none. The batch must be open unless every file was declared before.
    Raises InvalidState, Conflict if a file or the batch has moved on, Unavailable, OutcomeUnknown.
    """
    results, writes, new_sizes = [], [], []
    for file in files:
        if isinstance(file, StoredFile):
            writes.append(_write_of_stored(batch, file, context, log.id_secret))
            results.append(FileResult(file.file.path, writes[-1].stream, "received"))
            new_sizes += [] if file.known else [file.size]
        else:
            writes.append(_write_of_rejected(batch, file, context, log.id_secret))
            results.append(file.result(writes[-1].stream))
    writes = await _without_known_rejections(log, writes, results)
    return tuple(results), await _append_received(log, batch, writes, new_sizes, context)


def _with_received_bytes(
    stream: UUID,
    events: tuple[UploadEvent, ...],
    received: int | None,
    blob: str | None,
    context: CommandContext,
) -> tuple[Upload, tuple[UploadEvent, ...]]:
    """Add the receipt of the bytes that came with the registration, if any.

    For a file that arrives whole no progress is recorded.
    """
    upload = Upload.begin(stream, events[0])
    if received is None or blob is None:
        return upload, events
    arrived = upload.receive(received, blob, at=context.at, by=context.by)
    for event in arrived:
        upload = upload.evolve(event)
    return upload, (*events, *arrived)


async def _load_known(log: EventLog, stream: UUID, file: FileDeclaration) -> RegisteredUpload:
    log.forget(stream)
    upload = await log.upload(stream)
    if None not in (file.size, upload.size) and file.size != upload.size:
        raise InvalidState(f"{file.path} is in the batch already, with {upload.size} bytes")
    return RegisteredUpload(upload, False, 0)


_CheckedFile: TypeAlias = tuple[UUID, tuple[UploadEvent, ...], FileResult]
"""Stream, first event and result of one file of a list."""


def _check_file(
    batch: Batch,
    file: FileDeclaration,
    context: CommandContext,
    command: AddUploads,
    secret: bytes,
) -> _CheckedFile:
    code, message = "", ""
    if faults := tuple(validate_declaration(file)):
        code, message = "invalid", f"{faults[0].field} {faults[0].message}"
        file = FileDeclaration(path=sanitize(file.path))
    elif file.size is not None and file.size > command.max_size:
        code, message = "too_large", f"size must be at most {command.max_size} bytes"
    elif quota := command.over_quota.get(file.path):
        code, message = "quota_exceeded", quota
    if not code:
        stream, events = batch.register_upload(file, secret, at=context.at, by=context.by)
        return stream, events, FileResult(file.path, stream, "added")
    stream, events = batch.reject_upload(file, code, message, secret, at=context.at, by=context.by)
    return stream, events, FileResult(file.path, stream, "rejected", code, message)


async def _with_known_spelling(log: EventLog, batch: Batch, checked: _CheckedFile) -> _CheckedFile:
    """Replace the stream by that of the upload that version 0.1 registered for this spelling."""
    _, events, result = checked
    if result.status != "added":
        return checked
    earlier = await find_unnormalised_upload(log, batch.id, result.path)
    return checked if earlier is None else (earlier, events, result)


def _split_new(
    checked: list[_CheckedFile], known: dict[UUID, int]
) -> tuple[list[FileResult], list[StreamAppend]]:
    """Return all results, and the writes for files that are new to the batch and to the list."""
    results, writes, seen = [], [], set(known)
    for stream, events, result in checked:
        if stream in seen and result.status == "added":
            result = FileResult(result.path, stream, "known")
        elif stream not in seen:
            writes.append(StreamAppend(stream, 0, events))
        seen.add(stream)
        results.append(result)
    return results, writes


def _append_of_new_files(
    batch: Batch, writes: list[StreamAppend], context: CommandContext
) -> Append:
    firsts = [Upload.begin(write.stream, write.events[0]) for write in writes]  # type: ignore[arg-type]
    joined = [upload for upload in firsts if not upload.state.ended]
    size = sum(upload.size or 0 for upload in joined)
    events = batch.add_uploads(len(joined), size, at=context.at, by=context.by)
    own = (StreamAppend(batch.id, None, events),) if events else ()
    return Append(
        (*own, *writes),
        conditions=(AppendCondition(batch.id, batch.version, CLOSING),),
        cause=context.cause,
        idempotency=context.idempotency,
    )


async def _without_known_rejections(
    log: EventLog, writes: list[StreamAppend], results: list[FileResult]
) -> list[StreamAppend]:
    """Drop rejections that are recorded already, and those that occur twice in the list."""
    rejected = [result.upload for result in results if result.status == "rejected"]
    known = await log.versions(rejected) if rejected else {}
    return list({write.stream: write for write in writes if write.stream not in known}.values())


async def _append_received(
    log: EventLog,
    batch: Batch,
    writes: list[StreamAppend],
    new_sizes: list[int],
    context: CommandContext,
) -> int:
    if not writes:
        return 0
    own: tuple[StreamAppend, ...] = ()
    if new_sizes:
        added = batch.add_uploads(len(new_sizes), sum(new_sizes), at=context.at, by=context.by)
        own = (StreamAppend(batch.id, None, added),)
    still_open = AppendCondition(batch.id, batch.version, CLOSING)
    conditions = (still_open,) if any(not write.expected_version for write in writes) else ()
    append = Append((*own, *writes), conditions=conditions, cause=context.cause)
    return (await log.append(append)).position


def _write_of_rejected(
    batch: Batch, file: RejectedFile, context: CommandContext, secret: bytes
) -> StreamAppend:
    named = FileDeclaration(path=sanitize(file.file.path))
    stream, events = batch.reject_upload(
        named, file.code, file.message, secret, at=context.at, by=context.by
    )
    return StreamAppend(stream, 0, events)


def _write_of_stored(
    batch: Batch, stored: StoredFile, context: CommandContext, secret: bytes
) -> StreamAppend:
    """Return the write that registers a file, if it is new, and records its receipt."""
    events: tuple[UploadEvent, ...] = ()
    upload = stored.known
    if upload is None:
        stream, events = batch.register_upload(stored.file, secret, at=context.at, by=context.by)
        upload = Upload.begin(stream, events[0])
    received = upload.receive(stored.size, stored.blob, at=context.at, by=context.by)
    version = stored.known.version if stored.known else 0
    return StreamAppend(upload.id, version, (*events, *received))
