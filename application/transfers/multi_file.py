"""Many files in one request: small ones are recorded in groups, large ones are streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from uuid import UUID

import msgspec

from application.commands import UploadCommand
from application.errors import (
    ApplicationError,
    Conflict,
    NotFound,
    OutcomeUnknown,
    TooManyConflicts,
)
from application.handlers.execute import MAX_ATTEMPTS
from application.handlers.uploads import (
    FileResult,
    RegisteredUpload,
    RejectedFile,
    StoredFile,
    find_unnormalised_upload,
    record_received_files,
)
from application.transfers.creation import BatchTarget, UploadCreator
from application.transfers.errors import (
    BatchFull,
    BodyTooLarge,
    NotAcceptingBytes,
    OffsetMismatch,
    Preempted,
    QuotaExceeded,
)
from application.transfers.locks import single_request_blob_name
from application.transfers.transfers import Actor, AppendRequest, Transfers
from domain.batch.aggregate import Batch
from domain.batch.state import BatchState
from domain.errors import CommandRejected
from domain.file import FileDeclaration, sanitize, validate_declaration
from domain.ids import upload_id_for
from domain.upload.aggregate import Upload
from domain.upload.state import INCOMING, UploadState


class BufferedFile(msgspec.Struct, frozen=True):
    """A valid file that is completely in memory; `id` is that of its upload."""

    id: UUID
    file: FileDeclaration
    content: bytes


class PartiallyReceived(msgspec.Struct, frozen=True):
    """A file of which some bytes were received before, to be resumed from there."""

    upload: Upload
    content: bytes


class BatchedResult(msgspec.Struct, frozen=True):
    """Outcome of each file of a group, in order; `position` is 0 if nothing was recorded."""

    outcomes: tuple[FileResult | PartiallyReceived, ...]
    position: int


class SmallFileBatcher:
    """Records groups of small files: one disk sync and one append for many files."""

    def __init__(self, transfers: Transfers, new_id: Callable[[], UUID]) -> None:
        self._transfers = transfers
        self._new_id = new_id

    async def record(
        self, batch: UUID, files: Sequence[BufferedFile | RejectedFile], actor: Actor
    ) -> BatchedResult:
        """Store and record a group; when this returns, its bytes and events are durable.

        The paths of the files must differ. Raises NotFound, StorageFull, TooManyConflicts,
        Unavailable, OutcomeUnknown.
        """
        blobs: dict[UUID, str] = {}
        try:
            recorded_group = await self._record(batch, files, actor, blobs)
        except (CommandRejected, ApplicationError) as error:
            # Certainly nothing was recorded, so that no event refers to these blobs.
            if not isinstance(error, OutcomeUnknown):
                await self._free(blobs)
            raise
        await self._free(blobs)  # of files that another request recorded first
        return recorded_group

    async def _record(
        self,
        batch: UUID,
        files: Sequence[BufferedFile | RejectedFile],
        actor: Actor,
        blobs: dict[UUID, str],
    ) -> BatchedResult:
        for _ in range(MAX_ATTEMPTS):
            try:
                return await self._try(batch, files, actor, blobs)
            except Conflict:
                streams = [file.id for file in files if isinstance(file, BufferedFile)]
                self._transfers.log.forget(batch, *streams)
        raise TooManyConflicts(f"batch {batch} is changing too fast; try again")

    async def _try(
        self,
        id: UUID,
        files: Sequence[BufferedFile | RejectedFile],
        actor: Actor,
        blobs: dict[UUID, str],
    ) -> BatchedResult:
        """`blobs` holds the stored blobs that are not recorded yet, by upload."""
        log = self._transfers.log
        batch = await log.batch(id)
        verdicts = await self._classify(batch, files)
        await self._store([one for one in verdicts if isinstance(one, _AcceptedFile)], blobs)
        facts = [
            _recordable(one, blobs)
            for one in verdicts
            if isinstance(one, _AcceptedFile | RejectedFile)
        ]
        context = self._transfers.context(actor)
        recorded, position = await record_received_files(log, batch, facts, context)
        answers = iter(recorded)
        outcomes: list[FileResult | PartiallyReceived] = []
        for one in verdicts:
            if isinstance(one, _AcceptedFile):
                del blobs[one.id]
            outcomes.append(next(answers) if isinstance(one, _AcceptedFile | RejectedFile) else one)
        return BatchedResult(tuple(outcomes), position)

    async def _classify(
        self, batch: Batch, files: Sequence[BufferedFile | RejectedFile]
    ) -> list[_AcceptedFile | RejectedFile | FileResult | PartiallyReceived]:
        """Decide for each file: store, reject, skip, or resume."""
        log = self._transfers.log
        known = await log.versions([file.id for file in files if isinstance(file, BufferedFile)])
        verdicts: list[_AcceptedFile | RejectedFile | FileResult | PartiallyReceived] = []
        for file in files:
            if isinstance(file, BufferedFile) and file.id in known:
                verdicts.append(_classify_known(await log.upload(file.id), file))
            elif batch.state is not BatchState.OPEN:
                verdicts.append(_reject_closed_batch(batch, file, log.id_secret))
            else:
                verdicts.append(await self._admit(batch, file))
        return verdicts

    async def _admit(
        self, batch: Batch, file: BufferedFile | RejectedFile
    ) -> _AcceptedFile | RejectedFile:
        """Accept a new file unless a quota rejects it."""
        quotas = self._transfers.quotas
        if isinstance(file, RejectedFile):
            return file
        if not quotas.unlimited:
            try:
                await quotas.admit(batch.owner, batch.id, len(file.content))
            except (BatchFull, QuotaExceeded) as error:
                return RejectedFile(file.file, "quota_exceeded", str(error))
        return _AcceptedFile(file.id, file)

    async def _store(self, taken: Sequence[_AcceptedFile], blobs: dict[UUID, str]) -> None:
        """Store the contents that are not stored yet."""
        missing = [one for one in taken if one.id not in blobs]
        await self._transfers.free_space.require(sum(len(one.small.content) for one in missing))
        names = {one.id: single_request_blob_name(one.id, self._new_id()) for one in missing}
        contents = {names[one.id]: one.small.content for one in missing}
        async with self._transfers.free_space.with_free_bytes():
            found = await self._transfers.blobs.put_many(contents)
        blobs |= {id: found[name] for id, name in names.items()}

    async def _free(self, blobs: dict[UUID, str]) -> None:
        for name in blobs.values():
            await self._transfers.blobs.delete(name)


class _AcceptedFile(msgspec.Struct, frozen=True):
    """A file to store and record."""

    id: UUID
    small: BufferedFile
    known: Upload | None = None


def _recordable(
    one: _AcceptedFile | RejectedFile, blobs: dict[UUID, str]
) -> StoredFile | RejectedFile:
    """Return the fact to record for a file."""
    if isinstance(one, RejectedFile):
        return one
    return StoredFile(one.small.file, len(one.small.content), blobs[one.id], one.known)


def _reject_closed_batch(
    batch: Batch, file: BufferedFile | RejectedFile, secret: bytes
) -> FileResult:
    refused = RejectedFile(file.file, "invalid_state", f"the batch is {batch.state}")
    return refused.result(upload_id_for(batch.id, file.file.path, secret))


def _classify_known(
    upload: Upload, small: BufferedFile
) -> _AcceptedFile | FileResult | PartiallyReceived:
    """Decide about a file whose path the batch contains already."""
    size, file = len(small.content), small.file
    if upload.size not in (None, size):
        message = f"is in the batch already, with {upload.size} bytes"
        return RejectedFile(file, "other_size", message).result(upload.id)
    if upload.state is UploadState.REGISTERED:
        return _AcceptedFile(upload.id, small, upload)
    if upload.state is UploadState.TRANSFERRING:
        return PartiallyReceived(upload, small.content)
    return FileResult(file.path, upload.id, "known")


class LargeFileReceiver:
    """Streams single files of a request into their uploads, resuming at the recorded offset.

    Raises TransferAborted if the client disconnected or is idle, StorageFull,
    TooManyConflicts, Unavailable, OutcomeUnknown: these end the whole request. Any other error
    becomes the result of the file.
    """

    def __init__(self, transfers: Transfers, creator: UploadCreator, actor: Actor) -> None:
        self._transfers = transfers
        self._creator = creator
        self._actor = actor
        self.position = 0  # of what was recorded last

    async def stream(
        self, batch: UUID, file: FileDeclaration, chunks: AsyncIterator[bytes]
    ) -> FileResult:
        """Register the file and receive its bytes as they arrive; resume a known one."""
        try:
            upload = (await self._register(batch, file)).upload
        except (
            CommandRejected
        ) as refused:  # the batch is closed, or knows the path with another size
            id = upload_id_for(batch, file.path, self._transfers.log.id_secret)
            return RejectedFile(file, "invalid_state", str(refused)).result(id)
        except (BatchFull, QuotaExceeded) as error:
            id = upload_id_for(batch, file.path, self._transfers.log.id_secret)
            return RejectedFile(file, "quota_exceeded", str(error)).result(id)
        if upload.state not in INCOMING:
            return FileResult(file.path, upload.id, "known")
        return await self.resume(upload, chunks, size=file.size)

    async def resume(
        self, upload: Upload, chunks: AsyncIterator[bytes], *, size: int | None
    ) -> FileResult:
        """Receive the missing bytes of an upload; `chunks` are the file from its beginning."""
        incoming = AppendRequest(upload=upload.id, offset=upload.received, size=size, last=True)
        rest = _skip_to(upload.received, chunks)
        try:
            decided = await self._transfers.receive(incoming, rest, self._actor)
        except BodyTooLarge as error:
            await self._cancel(upload, str(error))
            return _refused(upload, "too_large", str(error))
        except (CommandRejected, NotFound, NotAcceptingBytes, OffsetMismatch, Preempted) as error:
            return _refused(upload, "invalid_state", str(error))
        self.position, received = max(self.position, decided.position), decided.aggregate
        if received.state in INCOMING:
            message = f"ended after {received.received} of {received.size} bytes"
            return _refused(upload, "too_short", message)
        return FileResult(upload.path, upload.id, "received")

    async def _register(self, batch: UUID, file: FileDeclaration) -> RegisteredUpload:
        owner = (await self._transfers.log.batch(batch)).owner
        target = BatchTarget(batch=batch, owner=owner)
        return await self._creator.register(target, file, self._actor)

    async def _cancel(self, upload: Upload, reason: str) -> None:
        """Cancel an upload that cannot be completed, so that its batch does not wait for it."""
        command = UploadCommand(upload.id, partial(Upload.cancel, reason=reason))
        with suppress(CommandRejected):  # it has ended meanwhile
            await self._transfers.cancel(command, self._transfers.context(self._actor))


def _refused(upload: Upload, code: str, message: str) -> FileResult:
    return RejectedFile(FileDeclaration(path=upload.path), code, message).result(upload.id)


async def _skip_to(offset: int, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the bytes from `offset` on."""
    skip = offset
    async for chunk in chunks:
        if len(chunk) > skip:
            yield chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))


MAX_BUFFERED_FILE_BYTES = 256 * 1024  # larger files are streamed
MAX_GROUP_FILES = 250
MAX_GROUP_BYTES = 4 * 1024 * 1024


class MultiFileReceiver:
    """Receives the files of one request into one batch.

    The next group is read while one is recorded. Memory: two groups, whatever the number and
    size of the files, and one short result per file.
    """

    def __init__(
        self,
        transfers: Transfers,
        creator: UploadCreator,
        batcher: SmallFileBatcher,
        batch: UUID,
        actor: Actor,
    ) -> None:
        self._transfers = transfers
        self._large = LargeFileReceiver(transfers, creator, actor)
        self._batcher = batcher
        self._batch = batch
        self._actor = actor
        self._seen: set[UUID] = set()
        self._group: list[BufferedFile | RejectedFile] = []
        self._answer_indexes: list[int] = []  # in `_answers`, of the files of the group
        self._bytes = 0
        self._recording: asyncio.Task[None] | None = None
        self._answers: list[FileResult | None] = []
        self._position = 0  # of the groups

    @property
    def position(self) -> int:
        """Position of the last recorded event; 0 if there is none."""
        return max(self._position, self._large.position)

    @property
    def count(self) -> int:
        """Number of files so far, including rejected ones."""
        return len(self._answers)

    async def add_file(self, file: FileDeclaration, chunks: AsyncIterator[bytes]) -> None:
        """Receive one file. The caller discards the chunks that this leaves unread.

        A file without a size ends with its chunks. Raises TransferAborted, StorageFull,
        NotFound, TooManyConflicts, Unavailable, OutcomeUnknown; then `close`.
        """
        if refusal := self._classify(file):
            await self.reject(file, *refusal)
            return
        head = bytearray()
        if (file.size or 0) <= MAX_BUFFERED_FILE_BYTES:
            async for chunk in chunks:
                head += chunk
                if len(head) > MAX_BUFFERED_FILE_BYTES:
                    break
            else:
                await self._add_buffered(file, bytes(head))
                return
        await self._flush()  # the files before a large one must not wait for it
        index = self._reserve_answer()
        whole = _prepend(bytes(head), chunks)
        self._answers[index] = await self._large.stream(self._batch, file, whole)

    async def reject(self, file: FileDeclaration, code: str, message: str) -> None:
        """Reject a file and record that."""
        named = FileDeclaration(path=sanitize(file.path))
        await self._add(RejectedFile(named, code, message))

    async def close(self) -> tuple[FileResult, ...]:
        """Record the last group; return one result per complete file, in order."""
        await self._flush()
        await self._await_recording()
        return tuple(answer for answer in self._answers if answer is not None)

    async def abandon(self) -> None:
        """Wait for the group that is being recorded; drop what was read since."""
        if self._recording is not None:
            await asyncio.wait({self._recording})
            self._recording.exception()  # retrieved, so that asyncio does not log it

    def _classify(self, file: FileDeclaration) -> tuple[str, str] | None:
        """Return code and message if the file is rejected before its bytes are read."""
        for fault in validate_declaration(file):
            return "invalid", f"{fault.field} {fault.message}"
        limit = self._transfers.limits.max_file_size
        if (file.size or 0) > limit:
            return "too_large", _too_large(limit)
        id = upload_id_for(self._batch, file.path, self._transfers.log.id_secret)
        if id in self._seen:
            return "repeated", "another file of the same path came earlier in this request"
        self._seen.add(id)
        return None

    async def _add_buffered(self, file: FileDeclaration, content: bytes) -> None:
        limit = self._transfers.limits.max_file_size
        if len(content) > limit:
            await self.reject(file, "too_large", _too_large(limit))
        else:
            await self._add(BufferedFile(await self._id_of(file), file, content))

    async def _id_of(self, file: FileDeclaration) -> UUID:
        log = self._transfers.log
        earlier = await find_unnormalised_upload(log, self._batch, file.path)
        return earlier or upload_id_for(self._batch, file.path, log.id_secret)

    def _reserve_answer(self) -> int:
        """Return the index of the next file's result."""
        self._answers.append(None)
        return len(self._answers) - 1

    async def _add(self, file: BufferedFile | RejectedFile) -> None:
        self._answer_indexes.append(self._reserve_answer())
        self._group.append(file)
        self._bytes += len(file.content) if isinstance(file, BufferedFile) else 0
        if len(self._group) >= MAX_GROUP_FILES or self._bytes >= MAX_GROUP_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Begin to record the group in the background, one group at a time."""
        await self._await_recording()
        if self._group:
            recording = self._record(self._group, self._answer_indexes)
            self._recording = asyncio.create_task(recording, name="record a group")
            self._group, self._answer_indexes, self._bytes = [], [], 0

    async def _await_recording(self) -> None:
        if (recording := self._recording) is not None:
            await asyncio.shield(recording)
            self._recording = None

    async def _record(self, group: list[BufferedFile | RejectedFile], indexes: list[int]) -> None:
        recorded_group: BatchedResult = await self._batcher.record(self._batch, group, self._actor)
        self._position = max(self._position, recorded_group.position)
        for index, outcome in zip(indexes, recorded_group.outcomes, strict=True):
            if isinstance(outcome, PartiallyReceived):
                content = _single_chunk(outcome.content)
                size = len(outcome.content)
                outcome = await self._large.resume(outcome.upload, content, size=size)
            self._answers[index] = outcome


async def _single_chunk(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content


async def _prepend(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield `head` and then the chunks."""
    if head:
        yield head
    async for chunk in chunks:
        yield chunk


def _too_large(limit: int) -> str:
    return f"size must be at most {limit} bytes"
