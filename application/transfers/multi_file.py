"""Small files that come together: made durable side by side, recorded in one append."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from uuid import UUID

import msgspec

from application.commands import CancelUpload
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
    """A sound file that is all in memory; `id` is that of its upload."""

    id: UUID
    file: FileDeclaration
    content: bytes


class PartiallyReceived(msgspec.Struct, frozen=True):
    """A file of which some bytes arrived another way before: it goes on from there."""

    upload: Upload
    content: bytes


class BatchedResult(msgspec.Struct, frozen=True):
    """What became of each file of a group, in its order; `position` is 0 if nothing was new."""

    outcomes: tuple[FileResult | PartiallyReceived, ...]
    position: int


class SmallFileBatcher:
    """Records groups of small files: one wait for the disk and one append for many of them."""

    def __init__(self, transfers: Transfers, new_id: Callable[[], UUID]) -> None:
        self._transfers = transfers
        self._new_id = new_id

    async def record(
        self, batch: UUID, files: Sequence[BufferedFile | RejectedFile], speaker: Actor
    ) -> BatchedResult:
        """Nothing of the group is answered before its bytes and events are durable.

        The paths of small files must differ. Raises NotFound, StorageFull, TooManyConflicts,
        Unavailable, OutcomeUnknown.
        """
        blobs: dict[UUID, str] = {}
        try:
            gathered = await self._record(batch, files, speaker, blobs)
        except (CommandRejected, ApplicationError) as error:
            # Once it is certain that nothing was recorded, nobody will ever ask for these.
            if not isinstance(error, OutcomeUnknown):
                await self._free(blobs)
            raise
        await self._free(blobs)  # of those that somebody else was faster with
        return gathered

    async def _record(
        self,
        batch: UUID,
        files: Sequence[BufferedFile | RejectedFile],
        speaker: Actor,
        blobs: dict[UUID, str],
    ) -> BatchedResult:
        for _ in range(MAX_ATTEMPTS):
            try:
                return await self._try(batch, files, speaker, blobs)
            except Conflict:
                streams = [file.id for file in files if isinstance(file, BufferedFile)]
                self._transfers.log.forget(batch, *streams)
        raise TooManyConflicts(f"batch {batch} is changing too fast; try again")

    async def _try(
        self,
        id: UUID,
        files: Sequence[BufferedFile | RejectedFile],
        speaker: Actor,
        blobs: dict[UUID, str],
    ) -> BatchedResult:
        """`blobs` holds what is stored and not on record, by upload."""
        log = self._transfers.log
        batch = await log.batch(id)
        judged = await self._judge(batch, files)
        await self._store([one for one in judged if isinstance(one, _Taken)], blobs)
        facts = [_fact(one, blobs) for one in judged if isinstance(one, _Taken | RejectedFile)]
        context = self._transfers.context(speaker)
        recorded, position = await record_received_files(log, batch, facts, context)
        answers = iter(recorded)
        outcomes: list[FileResult | PartiallyReceived] = []
        for one in judged:
            if isinstance(one, _Taken):
                del blobs[one.id]
            outcomes.append(next(answers) if isinstance(one, _Taken | RejectedFile) else one)
        return BatchedResult(tuple(outcomes), position)

    async def _judge(
        self, batch: Batch, files: Sequence[BufferedFile | RejectedFile]
    ) -> list[_Taken | RejectedFile | FileResult | PartiallyReceived]:
        """What is to be done with each: store it, refuse it, leave it, or go on with it."""
        log = self._transfers.log
        known = await log.versions([file.id for file in files if isinstance(file, BufferedFile)])
        judged: list[_Taken | RejectedFile | FileResult | PartiallyReceived] = []
        for file in files:
            if isinstance(file, BufferedFile) and file.id in known:
                judged.append(_of_known(await log.upload(file.id), file))
            elif batch.state is not BatchState.OPEN:
                judged.append(_too_late(batch, file, log.id_secret))
            else:
                judged.append(await self._admit(batch, file))
        return judged

    async def _admit(
        self, batch: Batch, file: BufferedFile | RejectedFile
    ) -> _Taken | RejectedFile:
        """A new file, unless its batch or its owner has had enough."""
        quotas = self._transfers.quotas
        if isinstance(file, RejectedFile):
            return file
        if not quotas.unlimited:
            try:
                await quotas.admit(batch.owner, batch.id, len(file.content))
            except (BatchFull, QuotaExceeded) as error:
                return RejectedFile(file.file, "quota_exceeded", str(error))
        return _Taken(file.id, file)

    async def _store(self, taken: Sequence[_Taken], blobs: dict[UUID, str]) -> None:
        """The bytes of those not stored yet."""
        missing = [one for one in taken if one.id not in blobs]
        await self._transfers.room.require(sum(len(one.small.content) for one in missing))
        names = {one.id: single_request_blob_name(one.id, self._new_id()) for one in missing}
        contents = {names[one.id]: one.small.content for one in missing}
        async with self._transfers.room.with_free_bytes():
            found = await self._transfers.blobs.put_many(contents)
        blobs |= {id: found[name] for id, name in names.items()}

    async def _free(self, blobs: dict[UUID, str]) -> None:
        for name in blobs.values():
            await self._transfers.blobs.delete(name)


class _Taken(msgspec.Struct, frozen=True):
    """A file to be stored and recorded."""

    id: UUID
    small: BufferedFile
    known: Upload | None = None


def _fact(one: _Taken | RejectedFile, blobs: dict[UUID, str]) -> StoredFile | RejectedFile:
    """What is to be recorded of it."""
    if isinstance(one, RejectedFile):
        return one
    return StoredFile(one.small.file, len(one.small.content), blobs[one.id], one.known)


def _too_late(batch: Batch, file: BufferedFile | RejectedFile, secret: bytes) -> FileResult:
    refused = RejectedFile(file.file, "invalid_state", f"the batch is {batch.state}")
    return refused.result(upload_id_for(batch.id, file.file.path, secret))


def _of_known(upload: Upload, small: BufferedFile) -> _Taken | FileResult | PartiallyReceived:
    """What to do with the bytes of a file that the batch knows."""
    size, file = len(small.content), small.file
    if upload.size not in (None, size):
        message = f"is in the batch already, with {upload.size} bytes"
        return RejectedFile(file, "other_size", message).result(upload.id)
    if upload.state is UploadState.REGISTERED:
        return _Taken(upload.id, small, upload)
    if upload.state is UploadState.TRANSFERRING:
        return PartiallyReceived(upload, small.content)
    return FileResult(file.path, upload.id, "known")


# A large file among others in one request: its end, good or bad, is not that of the request.


class LargeFileReceiver:
    """Takes single files of a request in, from where their uploads stand.

    Raises Ended where the sender is gone or silent, StorageFull, TooManyConflicts, Unavailable,
    OutcomeUnknown: what ends the whole request. Anything else is the answer for the file.
    """

    def __init__(self, transfers: Transfers, arrivals: UploadCreator, speaker: Actor) -> None:
        self._transfers = transfers
        self._arrivals = arrivals
        self._speaker = speaker
        self.position = 0  # of what was recorded last

    async def stream(
        self, batch: UUID, file: FileDeclaration, chunks: AsyncIterator[bytes]
    ) -> FileResult:
        """Registers the file, then takes its bytes in as they come; one known goes on."""
        try:
            upload = (await self._announce(batch, file)).upload
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
        return await self.go_on(upload, chunks, size=file.size)

    async def go_on(
        self, upload: Upload, chunks: AsyncIterator[bytes], *, size: int | None
    ) -> FileResult:
        """Takes in what is missing of an upload; `chunks` are the file from its beginning."""
        incoming = AppendRequest(upload=upload.id, offset=upload.received, size=size, last=True)
        rest = _beyond(upload.received, chunks)
        try:
            decided = await self._transfers.receive(incoming, rest, self._speaker)
        except BodyTooLarge as error:
            await self._call_off(upload, str(error))
            return _refused(upload, "too_large", str(error))
        except (CommandRejected, NotFound, NotAcceptingBytes, OffsetMismatch, Preempted) as error:
            return _refused(upload, "invalid_state", str(error))
        self.position, received = max(self.position, decided.position), decided.aggregate
        if received.state in INCOMING:
            message = f"ended after {received.received} of {received.size} bytes"
            return _refused(upload, "too_short", message)
        return FileResult(upload.path, upload.id, "received")

    async def _announce(self, batch: UUID, file: FileDeclaration) -> RegisteredUpload:
        return await self._arrivals.announce(BatchTarget(batch=batch), file, self._speaker)

    async def _call_off(self, upload: Upload, reason: str) -> None:
        """An upload that can never be whole must not keep its batch waiting."""
        command = CancelUpload(upload=upload.id, reason=reason)
        with suppress(CommandRejected):  # somebody else ended it meanwhile
            await self._transfers.cancel(command, self._transfers.context(self._speaker))


def _refused(upload: Upload, code: str, message: str) -> FileResult:
    return RejectedFile(FileDeclaration(path=upload.path), code, message).result(upload.id)


async def _beyond(offset: int, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes from `offset` on."""
    skip = offset
    async for chunk in chunks:
        if len(chunk) > skip:
            yield chunk[skip:] if skip else chunk
        skip = max(0, skip - len(chunk))


# Files that follow each other in one request: each is judged by itself, small ones in groups.

SMALL = 256 * 1024  # bytes of a file that is held in memory until its group is recorded
GROUP_FILES = 250
GROUP_BYTES = 4 * 1024 * 1024


class MultiFileReceiver:
    """Takes the files of one request into one batch.

    While a group is being recorded the next one is read. Memory: two groups, whatever the
    number and the size of the files; and one short answer for each file.
    """

    def __init__(
        self,
        transfers: Transfers,
        arrivals: UploadCreator,
        gathering: SmallFileBatcher,
        batch: UUID,
        speaker: Actor,
    ) -> None:
        self._transfers = transfers
        self._large = LargeFileReceiver(transfers, arrivals, speaker)
        self._gathering = gathering
        self._batch = batch
        self._speaker = speaker
        self._seen: set[UUID] = set()
        self._group: list[BufferedFile | RejectedFile] = []
        self._places: list[int] = []  # in `_answers`, of the files of the group
        self._bytes = 0
        self._recording: asyncio.Task[None] | None = None
        self._answers: list[FileResult | None] = []
        self._position = 0  # of the groups

    @property
    def position(self) -> int:
        """Of what was recorded last; 0 if nothing was."""
        return max(self._position, self._large.position)

    @property
    def count(self) -> int:
        """How many files came so far, those turned away included."""
        return len(self._answers)

    async def take(self, file: FileDeclaration, chunks: AsyncIterator[bytes]) -> None:
        """Takes one file in. Whatever of its chunks is left unread after this is not wanted.

        A file without a size ends where its chunks do. Raises Ended where the sender is gone or
        silent, StorageFull, NotFound, TooManyConflicts, Unavailable, OutcomeUnknown; then `close`.
        """
        if refusal := self._judge(file):
            await self.reject(file, *refusal)
            return
        head = bytearray()
        if (file.size or 0) <= SMALL:
            async for chunk in chunks:
                head += chunk
                if len(head) > SMALL:
                    break
            else:
                await self._take_small(file, bytes(head))
                return
        await self._flush()  # a large file takes its time: nobody before it should wait for that
        place = self._place()
        whole = _with(bytes(head), chunks)
        self._answers[place] = await self._large.stream(self._batch, file, whole)

    async def reject(self, file: FileDeclaration, code: str, message: str) -> None:
        """Refuses a file, on record."""
        named = FileDeclaration(path=sanitize(file.path))
        await self._add(RejectedFile(named, code, message))

    async def close(self) -> tuple[FileResult, ...]:
        """Records what is left; one answer for each file that came whole, in their order."""
        await self._flush()
        await self._recorded()
        return tuple(answer for answer in self._answers if answer is not None)

    async def abandon(self) -> None:
        """Waits for the group that is being recorded; what was read since is not kept."""
        if self._recording is not None:
            await asyncio.wait({self._recording})
            self._recording.exception()  # seen: nobody is left to be told

    def _judge(self, file: FileDeclaration) -> tuple[str, str] | None:
        """Why the file will not be taken, as far as can be said before its bytes."""
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

    async def _take_small(self, file: FileDeclaration, content: bytes) -> None:
        limit = self._transfers.limits.max_file_size
        if len(content) > limit:
            await self.reject(file, "too_large", _too_large(limit))
        else:
            await self._add(BufferedFile(await self._id_of(file), file, content))

    async def _id_of(self, file: FileDeclaration) -> UUID:
        log = self._transfers.log
        earlier = await find_unnormalised_upload(log, self._batch, file.path)
        return earlier or upload_id_for(self._batch, file.path, log.id_secret)

    def _place(self) -> int:
        """Where the answer for the next file goes."""
        self._answers.append(None)
        return len(self._answers) - 1

    async def _add(self, file: BufferedFile | RejectedFile) -> None:
        self._places.append(self._place())
        self._group.append(file)
        self._bytes += len(file.content) if isinstance(file, BufferedFile) else 0
        if len(self._group) >= GROUP_FILES or self._bytes >= GROUP_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        """Has the group recorded beside what comes next; one at a time."""
        await self._recorded()
        if self._group:
            recording = self._record(self._group, self._places)
            self._recording = asyncio.create_task(recording, name="record a group")
            self._group, self._places, self._bytes = [], [], 0

    async def _recorded(self) -> None:
        if (recording := self._recording) is not None:
            await asyncio.shield(recording)
            self._recording = None

    async def _record(self, group: list[BufferedFile | RejectedFile], places: list[int]) -> None:
        gathered: BatchedResult = await self._gathering.record(self._batch, group, self._speaker)
        self._position = max(self._position, gathered.position)
        for place, outcome in zip(places, gathered.outcomes, strict=True):
            if isinstance(outcome, PartiallyReceived):
                content = _in_one(outcome.content)
                size = len(outcome.content)
                outcome = await self._large.go_on(outcome.upload, content, size=size)
            self._answers[place] = outcome


async def _in_one(content: bytes) -> AsyncIterator[bytes]:
    if content:
        yield content


async def _with(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The file from its beginning, of which something was read already."""
    if head:
        yield head
    async for chunk in chunks:
        yield chunk


def _too_large(limit: int) -> str:
    return f"size must be at most {limit} bytes"
